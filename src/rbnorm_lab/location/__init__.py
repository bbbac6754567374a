"""The study of location: are the layers that a diagnosis names those worth re-estimating?"""
