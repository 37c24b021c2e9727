"""Draws what was measured: `make bench-plot` (needs requirements/plot.txt).

Each figure is written as SVG and as PNG, and names the machine, because a figure travels without its page.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import click
import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bench import plan, records
from bench.records import Record
from bench.tables import is_base, machine, size

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "betrace-kms"  # the same figures make the same file
mpl.rcParams["font.size"] = 9
OURS, ECHO = "#1f5fa8", "#b9b9b9"


def _selected(found: Sequence[Record], side: str, wanted: Callable[[Record], bool]) -> list[Record]:
    return [record for record in found if record.side == side and record.server_cpu_us and wanted(record)]


def calls(axes: Any, found: Sequence[Record]) -> None:
    """Draw the CPU of a call of each RPC that is not a batch, over that of the echo."""
    mine = _selected(found, "ours", lambda each: is_base(each.case) and each.case.batch == 1)
    base = {each.case: each.server_cpu_us for each in found if each.side == "echo"}
    mine.sort(key=lambda each: each.server_cpu_us or 0)
    names = [each.case.row for each in mine]
    axes.barh(names, [each.server_cpu_us for each in mine], color=OURS, label="betrace-kms")
    axes.barh(names, [base[each.case] for each in mine], color=ECHO, label="empty grpc.aio echo, same sizes")
    axes.set_xlabel("server CPU of a call, microseconds (16 in flight, TCP)")
    axes.legend(loc="lower right")


def payload(axes: Any, found: Sequence[Record]) -> None:
    """Draw the CPU of Encrypt and Decrypt over the size of the payload."""
    for row, style in (("Encrypt", "o-"), ("Decrypt", "s--")):
        for side, colour in (("ours", OURS), ("echo", ECHO)):
            some = _selected(found, side, lambda each, row=row: each.case.row == row and _sizes(each))  # type: ignore[misc]
            some.sort(key=lambda each: each.case.payload)
            name = row if side == "ours" else f"echo of {row}'s sizes"
            axes.loglog(
                [each.case.payload for each in some],
                [each.server_cpu_us for each in some],
                style,
                color=colour,
                label=name,
            )
    ticks = [64, 1024, 16 * 1024, 256 * 1024, 2**20, 2**22]
    axes.set_xticks(ticks, [size(each) for each in ticks])
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("payload")
    axes.set_ylabel("server CPU of a call, microseconds")
    axes.legend()


def _sizes(record: Record) -> bool:
    case = record.case
    return (case.transport, case.variant) == ("tcp", "") and case.concurrency in (16, plan.LARGE_IN_FLIGHT)


def batch(axes: Any, found: Sequence[Record]) -> None:
    """Draw the CPU of an item over the items of a call."""
    for row, style in (
        ("SignSpans", "o-"),
        ("SignSpans, proofs", "o--"),
        ("EncryptBatch", "s-"),
        ("DecryptBatch", "s--"),
    ):
        some = _selected(found, "ours", lambda each, row=row: each.case.row == row and not each.case.variant)  # type: ignore[misc]
        some.sort(key=lambda each: each.case.batch)
        axes.loglog([each.case.batch for each in some], [each.server_cpu_us for each in some], style, label=row)
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("items in a call")
    axes.set_ylabel("server CPU of an item, microseconds")
    axes.legend()


def tenants(axes: Any, found: Sequence[Record]) -> None:
    """Draw the CPU of a call over the number of tenants that take turns."""
    for row, style in (("SignSpan", "o-"), ("Encrypt", "s-")):
        some = _selected(found, "ours", lambda each, row=row: (each.case.row, each.case.variant) == (row, plan.PYTHON))  # type: ignore[misc]
        some.sort(key=lambda each: each.case.tenants)
        axes.semilogx([each.case.tenants for each in some], [each.server_cpu_us for each in some], style, label=row)
    axes.set_ylim(bottom=0)
    axes.set_xticks([1, 100, 1000, 10_000], ["1", "100", "1,000", "10,000"])
    axes.set_xlabel("tenants, all with cached keys")
    axes.set_ylabel("server CPU of a call, microseconds")
    axes.legend()


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 10, 20, 50, 100 instead of powers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


FIGURES: Mapping[str, tuple[str, Callable[[Any, Sequence[Record]], None]]] = {
    "calls": ("What a call costs", calls),
    "payload": ("What the size of the payload costs", payload),
    "batch": ("What an item of a batch costs", batch),
    "tenants": ("What many tenants cost", tenants),
}


def draw(folder: Path, described: Mapping[str, Any], found: Sequence[Record]) -> None:
    """Write every figure into a folder."""
    for name, (title, fill_axes) in FIGURES.items():
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        axes = figure.add_subplot()
        fill_axes(axes, found)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        figure.supxlabel(fill(machine(described, {}), 140), fontsize=6, color="#555555")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path))
def main(results: Path, folder: Path) -> None:
    """Draw all figures."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder, *records.read(results))
    click.echo(f"Wrote {', '.join(FIGURES)} into {folder}")


if __name__ == "__main__":
    main()
