"""Bad usage through the command line: status 2, one sentence, nothing written."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
import torch
from support import command, environment, execute, run

import rbnorm
from rbnorm_cli import main as command_line
from rbnorm_cli.main import main
from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import model_name

COMPARE = {
    "--norms bn,batch": "unknown norm 'batch': choose from bn, gn, ln, ln2d, in, rbn",
    "--data mnist": "unknown data 'mnist': choose from digits, fashion-mnist, cifar10",
    "--data cifar-10": "unknown data 'cifar-10': did you mean cifar10",
    "--model resnet81": "unknown model 'resnet81': did you mean",
    "--norms rnb": "unknown norm 'rnb': did you mean rbn",
    "--model torchvision:squeezenet1_0": "has no BatchNorm",
    "--model resnet18 --norms in": "with norm 'in' and batch size 64 cannot take the images",
    "--data imagefolder:missing": "there is no folder",
    "--data-root . --data cifar10": "CIFAR10 is not in . and cannot be downloaded",
    "--epochs 0": "epochs must be at least 1, not 0",
    "--epochs two": "argument --epochs: invalid int value: 'two'",
    "--batch-sizes 0": "batch size must be at least 1, not 0",
    "--batch-sizes 64,x": "batch sizes are whole numbers",
    "--batch-sizes 5000": "batch size 5000 is more than the 1297 training images",
    "--batch-sizes 8 --limit 4": "batch size 8 is more than the 4 training images",
    "--batch-sizes ,": "needs at least one norm and one batch size",
    "--lr nan": "lr must be a positive number, not nan",
    "--weight-decay -1": "weight decay must be zero or a positive number, not -1.0",
    "--mixed-precision fp8": "unknown mixed precision 'fp8': choose from no, fp16, bf16",
    "--mixed-precision fp16": "mixed precision 'fp16' needs an accelerator and there is none",
    "--workers -1": "workers must be at least 0",
    "--out a-file": "is a file",
    "--out a-file/below": "is a file",
    "--out /proc/rbnorm-compare": "/proc/rbnorm-compare cannot be made",  # nor by the superuser
    "--colour red": "unrecognized arguments: --colour red",
}
TRAIN = {
    "--norm batch": "unknown norm 'batch'",
    "--batch-size 5000": "batch size 5000 is more than the 1297 training images of digits",
    "--batch-size 5 --accumulate 2": "5 must be a multiple of processes times passes, 1 x 2",
    "--mixed-precision fp16": "mixed precision 'fp16' needs an accelerator and there is none",
}
BENCH = {
    "--repeats 0": "repeats must be at least 1, not 0",
    "--parts layer": "unknown part 'layer': did you mean layers",
    "--parts ,": "unknown part '': choose from layers, short, compiled, models, mobilenet",
    "--device tpu": "invalid choice: 'tpu'",
    "--device cuda": "--device cuda needs a CUDA or ROCm device",
}
BAD = [
    (start, arguments, message)
    for start, told in {
        "compare": COMPARE,
        "train --data digits --model cifar-resnet8 --out out --workers 0": TRAIN,
        "bench": BENCH,
    }.items()
    for arguments, message in told.items()
]


@pytest.mark.parametrize(("start", "arguments", "message"), BAD)
def test_bad_usage(start, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "a-file").touch()
    assert main([*start.split(), *arguments.split()]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("rbnorm: ")
    assert message in written.err
    assert written.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["a-file"]


def test_without_a_command_the_help_says_what_there_is_and_what_the_extra_adds(capsys):
    assert main([]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "COMMAND" in said
    assert "convert needs torch alone; the other commands need the extra lab, which adds" in said


def test_a_comparison_whose_runs_all_meet_a_corrupt_image_ends_with_its_name(
    image_folder, tmp_path, capsys
):
    (image_folder / "dark" / "0.png").write_bytes(b"\x89PNG broken")
    out = tmp_path / "out"
    data = ["--data", f"imagefolder:{image_folder}", "--batch-sizes", "8"]
    assert main(["compare", *data, "--norms", "bn", "--seeds", "1", "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rbnorm: every run of compare failed: UsageError: ")
    assert "dark/0.png is no readable image" in said


def test_more_classes_than_the_head_are_refused(image_folder, tmp_path, capsys):
    root, out = tmp_path / "parts", tmp_path / "out"
    shutil.copytree(image_folder / "light", root / "train" / "light")
    shutil.copytree(image_folder, root / "val")
    assert main(["compare", "--data", f"imagefolder:{root}", "--out", str(out)]) == 2
    assert "has the class 'dark'" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, capsys):
    # the superuser may write anywhere, so the refusal is pretended
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["compare", "--out", str(tmp_path / "out")]) == 2
    assert "is not writable" in capsys.readouterr().err


def test_the_version_and_the_exit_status_reach_the_shell(tmp_path):
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"rbnorm {rbnorm.__version__}\n")
    done = run("compare", "--norms", "batch", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_without_the_extra_a_command_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "LAB", ("rich", "sklearn", "a_package_nobody_has"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name)
    )
    assert main(["compare"]) == 2
    said = capsys.readouterr().err
    assert "rbnorm compare needs sklearn, a_package_nobody_has: " in said
    assert "pip install scikit-learn a_package_nobody_has adds them." in said


def test_the_help_keeps_the_command_that_installs_the_extra_whole(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("COLUMNS", "50")
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 50
    assert "scikit-learn" in said


def test_lists_take_commas_and_spaces(monkeypatch):
    studies = []
    monkeypatch.setattr("rbnorm_lab.studies.command.study", lambda _, s, *__: studies.append(s))
    lists = ["--norms", "bn,rbn", "gn", "--batch-sizes", "4", "16,32"]
    assert main(["compare", *lists]) == 0
    assert studies[0].norms == ("bn", "rbn", "gn")
    assert studies[0].batch_sizes == (4, 16, 32)


@pytest.mark.parametrize(
    ("given", "function", "said"),
    [
        ("compare", "studies.command.study", "the same command again continues after the last"),
        ("diagnose --model resnet18 --random", "diagnose.diagnose", "no file has changed"),
    ],
)
def test_an_interrupted_command_says_what_is_there(given, function, said, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"rbnorm_lab.{function}", interrupt)
    assert main(given.split()) == 130
    assert capsys.readouterr().err.startswith(f"rbnorm: interrupted; {said}")


def test_the_library_does_not_import_the_extra():
    names = {"rbnorm_lab", "rich", "pandas", "safetensors"}
    code = f"import sys, rbnorm; print({names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


SLIPS = (
    ["compare", "--norms", "bn,rnb"],
    ["compare", "--data", "cifar11"],
    ["compare", "--shifted", "fog"],
    ["compare", "--seeds", "0"],
    ["study", "primry"],
    ["train", "--data", "digits", "--norm", "rnb"],
    ["diagnose", "--model", "missing.pt"],
    ["diagnose", "--model", "resnet18", "--checkpoint", "missing.safetensors"],
    ["diagnose", "--model", "resnet18", "--random", "--shifted", "nois"],
    ["diagnose", "--model", "resnet18"],
    ["diagnose", "--model", "resnet18", "--random", "--classes", "missing.txt"],
    ["diagnose", "--model", "resnet18", "--random", "--data", "imagefolder:missing"],
    ["study", "domains", "--images", "missing"],
    ["study", "domains", "--images", ".", "--weights", "missing.pth"],
    ["convert", "missing.pt", "out.pt"],
)
HEAVY = ("torch", "timm", "torchvision", "plotly", "matplotlib", "rbnorm")
ANSWER = f"""
import sys
from rbnorm_cli.main import main

for slip in {SLIPS!r}:
    assert main(slip) == 2
assert main(["--version"]) == 0
print(set({HEAVY!r}) & set(sys.modules))
"""


def test_a_slip_is_answered_before_anything_heavy_is_imported(tmp_path):
    done = execute([sys.executable, "-c", ANSWER], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    assert done.stderr.count("\n") == len(SLIPS)


def test_what_was_meant_is_named_once():
    with pytest.raises(UsageError) as caught:
        model_name("resnet81")
    _, _, meant = str(caught.value).partition("did you mean ")
    choices = meant.rstrip("?").split(" or ")
    assert len(choices) == len(set(choices)) == 3


def test_a_reader_that_has_gone_costs_no_page(tmp_path):
    arguments = ["compare", "--norms=bn", "--batch-sizes=64", "--seeds=1", "--epochs=1"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command(*arguments, "--limit=64", "--out=out"),
        cwd=tmp_path,
        env=environment(),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, "Traceback" in done.stderr) == (141, False)
    assert (tmp_path / "out" / "report.html").exists()


def test_a_full_standard_output_is_a_sentence(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--version"),
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (2, "rbnorm: No space left on device.\n")


SMALL = ["compare", "--norms=bn", "--batch-sizes=64", "--seeds=1", "--epochs=1", "--limit=64"]


def test_a_disk_that_is_full_when_the_page_is_written_is_a_sentence(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("rbnorm_lab.templates.replace", full)
    assert main([*SMALL, f"--out={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"rbnorm: {tmp_path}/report.html: No space left on device."


def test_a_finished_comparison_says_so_and_brackets_are_printed(tmp_path, capsys):
    out = tmp_path / "[red]x[/] :smile:"
    assert main([*SMALL, f"--out={out}"]) == 0
    assert f"Report: {out}/report.html" in capsys.readouterr().out
    assert main([*SMALL, f"--out={out}"]) == 0
    again = capsys.readouterr().out
    assert again.startswith(f"Nothing left to run: {out} has every run.")
    assert "0/0" not in again


COMPLETE = """
source completion.bash
COMP_WORDS=({words}) COMP_CWORD={last} COMP_LINE="{words}" COMP_POINT=${{#COMP_LINE}}
_shtab_rbnorm rbnorm "{word}" "{before}"
echo "${{COMPREPLY[@]}}"
"""
COMPLETED = {
    "rbnorm comp": "compare",
    "rbnorm compare --norms rbn-": "rbn-center rbn-scale",
    "rbnorm compare --data dig": "digits",
    "rbnorm study prim": "primary",
    "rbnorm compare --model resnet5": "resnet50",
    "rbnorm convert notes": "notes.pt",
}


def test_a_shell_completes_commands_names_and_files(tmp_path, capsys):
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    (tmp_path / "notes.pt").touch()
    asked = []
    for words in COMPLETED:
        *_, before, word = words.split()
        last = len(words.split()) - 1
        asked.append(COMPLETE.format(words=words, last=last, word=word, before=before))
    done = execute(["bash", "-c", "".join(asked)], tmp_path)
    assert done.stdout.splitlines() == list(COMPLETED.values()), done.stderr


def test_other_shells_have_a_script_too_and_unknown_ones_are_refused(capsys):
    for shell in ("zsh", "tcsh"):
        assert main(["--print-completion", shell]) == 0
        assert "compare" in capsys.readouterr().out
    assert main(["--print-completion", "fish"]) == 2
    said = "rbnorm: unknown shell 'fish': choose from bash, zsh, tcsh.\n"
    assert capsys.readouterr().err == said
