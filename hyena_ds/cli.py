"""The `hyena-ds` command. Sub-commands import torch when they run, if they need it: `check` and `prep` work without."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from data_prep.cli import add_commands as add_prep_commands
from hyena_ds.bench.command import add_commands as add_bench_commands
from hyena_ds.checkpoints.listing import list_checkpoints
from hyena_ds.config.arithmetic import describe, describe_hosts, plan_stages
from hyena_ds.config.limits import MOST_RANKS, check_count, whole_number
from hyena_ds.config.names import check_new_name
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.command import add_commands as add_data_commands
from hyena_ds.doctor.command import add_arguments as add_doctor_arguments
from hyena_ds.errors import LocalError, UserError, say
from hyena_ds.planning.command import add_arguments as add_plan_arguments
from hyena_ds.planning.command import add_plan_measurement
from hyena_ds.planning.prediction import add_arguments as add_plan_predict_arguments
from hyena_ds.predict.embed import add_arguments as add_embed_arguments
from hyena_ds.predict.export import add_arguments as add_export_arguments
from hyena_ds.predict.generate import add_arguments as add_generate_arguments
from hyena_ds.predict.perplexity import add_arguments as add_perplexity_arguments
from hyena_ds.predict.score import add_arguments as add_score_arguments
from hyena_ds.predict.variants import add_arguments as add_variants_arguments
from hyena_ds.predict.weights_command import add_commands as add_weights_commands
from hyena_ds.report.command import add_arguments as add_report_arguments
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime import local_ranks
from hyena_ds.runtime.interruption import Interruption
from hyena_ds.runtime.roster import roster_of
from hyena_ds.runtime.supervisor import supervise
from hyena_ds.shipped.command import add_commands as add_shipped_commands
from hyena_ds.suites.audit_command import add_arguments as add_audit_arguments
from hyena_ds.suites.evaluate_command import add_arguments as add_evaluate_arguments
from hyena_ds.sweeps.command import add_arguments as add_sweep_arguments
from hyena_ds.sweeps.tune import add_arguments as add_tune_arguments
from hyena_ds.tasks.deriving import load_run

if TYPE_CHECKING:
    from hyena_ds.tasks.task import Task

_VERBS: tuple[tuple[str, Callable[[argparse.ArgumentParser], Any], str], ...] = (
    ("score", add_score_arguments, "log-likelihood of regions, and of every base, under a model"),
    ("embed", add_embed_arguments, "hidden states of sequences, one vector each or one a base"),
    ("variants", add_variants_arguments, "what a model says of every ALT of a VCF, BCF or TSV, on both strands"),
    ("generate", add_generate_arguments, "bases after a prompt, drawn from a trained model"),
    (
        "perplexity",
        add_perplexity_arguments,
        "a model's perplexity by context, position and distance, beside baselines",
    ),
    ("export", add_export_arguments, "write a trained model as a folder that other programs open"),
    ("weights", add_weights_commands, "what weights are, another form of them, and whether they are right"),
)
"""What is done with a trained model: commands, their parsers, and their help."""


def run_process() -> NoReturn:
    """Run `main` as this process, and end it."""
    code = main()
    if local_ranks.under_launcher():
        local_ranks.end_rank(code)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit code. A user's mistake is one sentence on stderr and code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8 come out as they are
    try:
        if any("\0" in argument for argument in arguments):
            raise UserError("found a NUL in an argument, wanted text")
        parsed = _parser().parse_args(arguments)
        parsed.typed = arguments
        code = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except UserError as error:
        # Ranks agree on errors, so one of them speaks for all; what one has met alone it says itself.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, LocalError):
            say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:  # whoever read the output has seen enough
        if "RANK" in os.environ:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        named_or_full = error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not named_or_full or (parsed.run in (_train, _finetune) and "RANK" in os.environ):
            raise  # of a rank: the watchdog has written it down, and the supervisor judges it
        what = "disk" if error.filename is None else error.filename
        said = UserError(f"{what}: {error.strerror}; look at the path, its permissions, and the room on its disk")
        say(f"error: {said}")
        return UserError.exit_code
    except KeyboardInterrupt:
        resumes = arguments[:1] and arguments[0] in ("prep", "score", "variants", "embed", "perplexity", "evaluate")
        say("interrupted; run the same command again to resume" if resumes else "interrupted")
        return 130


class _Parser(argparse.ArgumentParser):
    """argparse's, whose errors are lines of a usual length, without secrets, whatever was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(str(UserError(message)))

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """What was typed; a launch command behind `--` apart, and changes to the config behind options too."""
        if args[:2] == ["plan", "predict"]:
            args = ["plan predict", *args[2:]]
        at = args.index("--") if args[:1] == ["supervise"] and "--" in args else len(args)
        parsed, rest = self.parse_known_args(args[:at], namespace)
        if rest:
            if "overrides" not in parsed or any(word.startswith("-") for word in rest):
                self.error(f"unrecognized arguments: {' '.join(rest)}")
            parsed.overrides += rest  # argparse takes them in one place alone
        parsed.launch = list(args[at + 1 :])
        return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hyena-ds", description="Train HyenaDNA on contexts of a million bases.")
    # The deepspeed launcher puts --local_rank before the sub-command; the rank is read from the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_shipped_commands(commands)
    add_prep_commands(
        commands.add_parser("prep", help="write a genome out as shards, verify them, download an assembly")
    )
    bench = commands.add_parser("bench", help="time, memory and exchanged bytes of a step and its parts")
    add_plan_measurement(add_bench_commands(bench))
    add_data_commands(commands.add_parser("data", help="which bases a step of a run consumed"))
    add_doctor_arguments(commands.add_parser("doctor", help="look at hosts, shards and links before a run does"))
    train = commands.add_parser("train", help="train a model from a YAML config")
    check = commands.add_parser("check", help="validate a config and print what follows from it; needs no torch")
    add_plan_arguments(
        commands.add_parser("plan", help="memory, time and better grids of a run on machines you name; needs no torch")
    )
    add_plan_predict_arguments(
        commands.add_parser("plan predict", help="memory of a pass of score, embed and the like")
    )
    again = commands.add_parser(
        "supervise",
        help="train, and start again after a failure",
        usage="hyena-ds supervise config [key.path=value ...] [-- LAUNCH COMMAND ...]",
    )
    finetune = commands.add_parser("finetune", help="train a model on labelled sequences, and test it once")
    for command, run in ((train, _train), (finetune, _finetune), (check, _check), (again, _supervise)):
        command.add_argument("config", help="YAML file of a whole run")
        command.add_argument("overrides", nargs="*", metavar="key.path=value", help="change a setting for this run")
        command.set_defaults(run=run)
    checkpoints = commands.add_parser(
        "checkpoints", help="list a run's checkpoints and say which are whole; needs no torch"
    )
    checkpoints.add_argument("directory", metavar="RUN", help="directory of a run")
    checkpoints.add_argument("--verify", action="store_true", help="read every byte and compare the checksums")
    checkpoints.set_defaults(run=_checkpoints)
    for name, add_arguments, text in _VERBS:
        add_arguments(commands.add_parser(name, help=text))
    add_sweep_arguments(commands.add_parser("sweep", help="train many runs of one config, and set them side by side"))
    add_tune_arguments(
        commands.add_parser("tune", help="which grid is fastest here: a few steps on each, which plan learns from")
    )
    add_audit_arguments(commands.add_parser("audit", help="what a score on a train and a test set would be worth"))
    add_evaluate_arguments(
        commands.add_parser(
            "evaluate", help="tasks, models and seeds in one table, beside audits and rules without a model"
        )
    )
    add_report_arguments(commands.add_parser("report", help="write one HTML page about a run; needs no torch"))
    check.add_argument(
        "--ranks", type=whole_number, help="number of processes (default: local_ranks, else the widest stage)"
    )
    check.add_argument(
        "--ranks-per-host", type=whole_number, help="processes on each host: says which stages cut across hosts"
    )
    return parser


def _train(parsed: argparse.Namespace) -> int:
    config = load_run(parsed.config, parsed.overrides)
    if config.task is not None and config.task.on_embeddings:
        ranks = int(os.environ["WORLD_SIZE"]) if local_ranks.under_launcher() else 1
        if ranks > 1:
            raise UserError(
                f"task.frozen: found {config.task.frozen} under a launcher with {ranks:,} processes, wanted one: its embeddings are one "
                "pass of one process; start `hyena-ds finetune` without a launcher"
            )
        from hyena_ds.predict.probe import probe

        return probe(config)
    if local_ranks.under_launcher():
        interruption = Interruption(config.stop_after, config.stop_after_seconds)
        interruption.listen()
        # Not before: torch takes seconds, in which a signal must be heard.
        from hyena_ds.training.rank import train

        return train(config, _task(config), interruption)
    ranks = local_ranks.local_ranks(config)
    plan_stages(config, ranks)
    RunDirectory(config).check(config)
    code = local_ranks.start_local_ranks(["train", parsed.config, *parsed.overrides], ranks)
    if code == 0 and not RunDirectory(config).is_complete():
        say("error: the launcher says that all went well, but the run is not complete")
        return 70
    return code


def _task(config: RunConfig) -> Task:
    if config.task is not None and config.task.in_context:
        from hyena_ds.tasks.in_context import InContextTask

        return InContextTask(config)
    if config.task is not None:
        from hyena_ds.tasks.labelled import LabelledTask

        return LabelledTask(config)
    from hyena_ds.tasks import next_token

    return next_token.NextTokenTask(config)


def _finetune(parsed: argparse.Namespace) -> int:
    config = load_run(parsed.config, parsed.overrides)
    if config.task is None:
        raise UserError(
            f"{parsed.config}: found no task, wanted labelled sequences to fine-tune on; or use hyena-ds train"
        )
    return _train(parsed)


def _supervise(parsed: argparse.Namespace) -> int:
    from hyena_ds.planning.other_hosts import layout

    config = load_run(parsed.config, parsed.overrides)
    command = parsed.launch or [sys.executable, "-m", "hyena_ds", "train", parsed.config, *parsed.overrides]
    return supervise(config, command, os.environ, roster_of(config, command, os.environ, layout))


def _check(parsed: argparse.Namespace) -> int:
    config = load_run(parsed.config, parsed.overrides)
    check_new_name(config.name, RunDirectory(config).config_file, "name")
    check_count("--ranks", parsed.ranks, MOST_RANKS)
    check_count("--ranks-per-host", parsed.ranks_per_host, MOST_RANKS)
    ranks = parsed.ranks or config.local_ranks or config.widest_sequence_parallel
    hosts = [f"host {rank // (parsed.ranks_per_host or ranks)}" for rank in range(ranks)]
    print("\n".join([*describe(config, ranks), *describe_hosts(config, hosts)]))
    return 0


def _checkpoints(parsed: argparse.Namespace) -> int:
    lines, whole = list_checkpoints(parsed.directory, parsed.verify)
    print("\n".join(lines))
    return 0 if whole else 1
