from support import make_record

from rbnorm_cli.names import NORMS
from rbnorm_lab.plots import curves_figure


def test_no_two_norms_look_the_same():
    norms = [*NORMS, *(f"rbn:scale_bias_init={value}" for value in range(2, 12))]
    figure = curves_figure([make_record(norm=norm) for norm in norms])
    lines = figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(norms)


def test_a_norm_without_a_style_takes_a_free_colour():
    norms = ["bn", "rbn:statistic=max", "rbn", "rbn:statistic=std"]
    figure = curves_figure([make_record(norm=norm) for norm in norms])
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == len(norms)
