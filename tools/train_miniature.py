"""Train the miniature models from scratch and save each as a checkpoint of its family."""

import sys
from pathlib import Path

import torch

from engine.cli.command_line import CommandParser, positive, run_command
from engine.units import size_text
from tools.miniature.checkpoint import export, restore
from tools.miniature.configs import CONFIGS
from tools.miniature.grade import grade, in_words, torch_answers
from tools.miniature.progress import training_progress
from tools.miniature.questions import exam
from tools.miniature.scenes import Split
from tools.miniature.train import RUNS, train

VALIDATION = 300
"""Questions that a trained model is graded on."""


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="train_miniature", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("models/miniature"),
        help="receives a directory for each (default: %(default)s)",
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/miniature"), help="holds unfinished stages (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--only", choices=list(CONFIGS), help="train this one alone, others in other processes")
    arguments = parser.parse_args(argv)
    if arguments.seed not in RUNS:
        parser.error(f"--seed {arguments.seed} is outside {RUNS.start}..{RUNS[-1]}, whose scenes are their own")

    def command() -> None:
        torch.set_num_threads(arguments.threads)
        arguments.work.mkdir(parents=True, exist_ok=True)
        for name in [arguments.only] if arguments.only else list(CONFIGS):
            with training_progress() as on_progress:
                model = train(name, arguments.seed, arguments.work, on_progress)
            directory = arguments.out / name
            export(model, directory)
            size = sum(file.stat().st_size for file in directory.iterdir())
            questions = exam(Split.VALIDATION, VALIDATION)
            shares = grade(questions, torch_answers(restore(directory), questions))
            print(f"{name}, {VALIDATION} validation questions: {in_words(shares)}")
            print(f"checkpoint {name} is in {directory} ({size_text(size)})")

    return run_command(command, "interrupted; run the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
