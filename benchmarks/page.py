"""docs/benchmarks.md, made of the results.

python -m benchmarks.page [RESULTS [PAGE]]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import gpu_section
from benchmarks.driver import OURS, PEERS
from benchmarks.findings import lost, marks, notes
from benchmarks.records import RESULTS, Records

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

What Segue does with the same conversations as what people use instead. This page is written by
`make bench`, which measures everything again in less than half an hour, from the lines in
`benchmarks/results/cpu.jsonl`.
"""
MEANING = """\
How many tokens the model had to read, over the fewest that any cache could have done with, all
turns of a workload together: 1.00 is perfect, and no noise is in it. The fewest are, turn by turn,
the ids of the prompt behind what a perfect cache of this conversation holds (everything read or
said in it, sampled ids included; `benchmarks/optimum.py` has the definition, and none of Segue's
code). Each peer is held against its own conversation, since each says something else. Branches are
conversations of their own: a cache that one branch shares with another may come out below 1. A
template that renders a reply otherwise than it was said (workloads 3 and 10) makes every cache read
it again: that is among the fewest.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def seconds(spread: dict[str, float]) -> str:
    """A median with least and most, in the unit that suits it."""
    unit, scale = ("s", 1.0) if spread["median"] >= 1 else ("ms", 1000.0)
    places = 2 if scale == 1.0 or spread["median"] * scale < 10 else 0
    low, middle, high = (f"{spread[key] * scale:.{places}f}" for key in ("min", "median", "max"))
    return f"{middle} {unit} ({low} to {high})"


def number(spread: dict[str, float], places: int = 2) -> str:
    """A median with least and most."""
    low, middle, high = (f"{spread[key]:.{places}f}" for key in ("min", "median", "max"))
    return f"{middle} ({low} to {high})"


def megabytes(count: float) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def picture(name: str, says: str) -> str:
    """A picture by its name in docs/benchmarks."""
    return f"![{says}](benchmarks/{name}.svg)\n"


def machine(records: Records) -> str:
    """Where and with what it was measured."""
    told = records.circumstances
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    rows = [
        ["Machine", f"{told['processor']}, {told['cores']} cores, {told['system']}"],
        ["Software", f"Python {told['python']}, {versions}"],
        ["SmolLM2", f"{told['models']['smollm2']}; llama.cpp: the GGUF file itself (Q4_1)"],
        ["Window", told["models"]["sliding"]],
        ["Hybrid", told["models"]["hybrid"]],
        ["Texts", told["texts"]],
        ["Date", told["date"]],
    ]
    lines = ["| | |", "|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def fed(records: Records) -> str:
    """The headline: tokens fed over the optimum."""
    rows = []
    for name in records.workloads:
        about = records.circumstances["workloads"][name]
        cells = []
        for peer in PEERS:
            ratio = records.ratio(name, peer)
            told = "none" if ratio is None else f"{ratio:.2f}"
            cells.append(told + marks(records.counts(name, peer)))
        model = {"smollm2": "SmolLM2"}.get(about["model"], f"random, {about['model']}")
        rows.append([f"{about['number']}. {about['title']}", model, *cells])
    head = ["Workload", "Model", *(peer.title for peer in PEERS.values())]
    worst = max(
        (turn["fed_tokens"] / turn["best_fed"])
        for name in records.workloads
        for turn in records.turns(name, OURS)
    )
    parts = [
        "## Tokens fed, over the fewest possible\n",
        MEANING,
        table(head, rows),
        f"Segue's worst single turn: {worst:.2f}.\n",
        picture("tokens_fed", "Tokens fed over the fewest possible, by workload and peer"),
        *notes(records),
    ]
    turns = records.turns("growth", OURS)
    if turns:
        ours, theirs = turns[-1]["fed_tokens"], records.turns("growth", "stateless")
        whole = f"; the stateless way, {theirs[-1]['fed_tokens']}" if theirs else ""
        parts.append(
            f"In turn {len(turns)} of the growing conversation Segue reads {ours} tokens, as in "
            f"turn 2 ({turns[1]['fed_tokens']}){whole}.\n"
        )
        parts.append(picture("fed_by_turn", "Tokens fed in each turn of a growing conversation"))
    return "\n".join(parts)


def times(records: Records) -> str:
    """Time to first token and decode speed, of all peers."""
    parts = ["## Time to the first token\n"]
    length = records.circumstances["timed_document_tokens"]
    for name, what in (
        ("document", f"Questions about a document of {length:,} tokens that was read before"),
        ("chat", "The last turn of a chat of three, at temperature 0"),
    ):
        timed = records.timed(name)
        if not timed:
            continue
        rows = []
        for peer in [name for name in PEERS if name in timed]:
            turn = timed[peer]["turns"][-1]
            ratio = turn.get("segue_over_this", {}).get("first_token_seconds")
            memory = timed[peer].get("peak_rss_bytes")
            rows.append(
                [
                    PEERS[peer].title,
                    seconds(turn["first_token_seconds"]),
                    number(ratio) if ratio else "",
                    number(turn["decode_tokens_per_second"], 1),
                    *([megabytes(memory) if memory else ""] if name == "document" else []),
                ]
            )
        runs = next(iter(timed.values()))["runs"]
        head = ["", "First token", "Segue over this", "Decoding, tokens/s"]
        parts += [
            f"{what}: median of {runs} runs after a warm-up, least and most in brackets. All peers "
            "took their turns one after another.\n",
            table([*head, *(["Peak memory"] if name == "document" else [])], rows),
        ]
        if name == "document":
            parts.append(picture("first_token", "Seconds to the first token, by peer"))
    parts.append(
        "Ratios are of the same engine on the same weights (float32), turn by turn. llama.cpp "
        "computes on 4-bit weights and transformers on PyTorch: their times say how fast those "
        "engines are, too.\n"
    )
    return "\n".join(parts)


def growth(records: Records) -> str:
    """How the time to the first token grows."""
    found = records.one("growth")
    if found is None:
        return ""
    places = found["places"]
    rows = [
        [
            str(place["turn"]),
            f"{place['held_tokens']:,}",
            str(place["fed_tokens"]),
            seconds(place["segue"]),
            seconds(place["bare"]),
            seconds(place["stateless"]) if "stateless" in place else "",
        ]
        for place in places
    ]
    grown = found["growth"]
    head = ["From turn", "Held", "Fed", "Segue", "Bare loop", "Stateless mlx-lm"]
    return "\n".join(
        [
            "## Growth\n",
            "Messages of equal length, replies of four tokens; five turns from each place on. The "
            "bare loop (`generate_step`) is given the same number of tokens behind the same number "
            "of held ones, right after each turn: what it grows by is attention's own.\n",
            table(head, rows),
            f"From turn {places[0]['turn']} to turn {places[-1]['turn']}, the time to the first "
            f"token grew {grown['segue']:.2f} times with Segue, {grown['bare']:.2f} times in the "
            f"bare loop, {grown['stateless']:.1f} times the stateless way.\n",
            picture("growth", "Seconds to the first token as the conversation grows"),
        ]
    )


def decoding(records: Records) -> str:
    """Decoding beside the bare loop, and with prompt lookup."""
    parts = []
    if (found := records.one("decode_overhead")) is not None:
        ratio = found["paired_ratio_to_generate_step"]
        own = found["own_microseconds_per_token"]["median"]
        parts.append(
            "A session decodes at "
            f"{number(ratio['segue'], 3)} of the speed of mlx-lm's bare loop (`generate_step`), "
            f"`mlx_lm.stream_generate` at {number(ratio['stream_generate'], 3)}: medians of "
            f"{found['runs']} stretches of {found['tokens']} tokens, in turns. The session's own "
            f"work, timed alone, is {own:.0f} µs a token.\n"
        )
    if (found := records.one("speculative")) is not None:
        tasks = found["tasks"]
        gains = {task: number(told["prompt_lookup_over_plain"]) for task, told in tasks.items()}
        parts.append(
            f"Prompt lookup makes decoding {gains['repeats its input']} times as fast where the "
            f"reply repeats its input, and {gains['does not']} times where it does not; the tokens "
            "are the same.\n"
        )
    return "\n".join(["## Decoding\n", *parts]) if parts else ""


def kept(records: Records) -> str:
    """Saving, resuming, forking."""
    parts = []
    if (found := records.one("saving")) is not None:
        names = {
            "save": "`ChatSession.save`",
            "mlx_save": "`mlx_lm` `save_prompt_cache`",
            "resume": "`ChatSession.open`",
            "mlx_load": "`mlx_lm` `load_prompt_cache`",
        }
        sizes = found["bytes"]
        rows = []
        for name, title in names.items():
            size, spent = sizes["cache" if "mlx" in name else "session"], found["seconds"][name]
            per_mb = 1000 * spent["median"] / (size / 1e6)
            rows.append([title, megabytes(size), seconds(spent), f"{per_mb:.2f} ms"])
        parts += [
            f"A session that holds {found['held_tokens']:,} tokens of SmolLM2:\n",
            table(["", "File", "Time", "Per MB"], rows),
            "Segue writes beside the file, flushes and renames it, and keeps a checksum of the "
            "whole, which it checks when it reads; mlx-lm writes in place and checks nothing.\n",
        ]
    if (found := records.one("forks")) is not None:
        share = found["bytes"] / found["bytes_of_copies"]
        parts.append(
            f"{found['forks']} forks of a session that holds {found['held_tokens']:,} tokens, each "
            f"with a turn of {found['fed_tokens']['median']:.0f} tokens and a reply of "
            f"{found['generated_tokens']}: a fork takes {seconds(found['fork_seconds'])}, its "
            f"first token {seconds(found['first_token_seconds'])}. All together they hold "
            f"{megabytes(found['bytes'])} ({megabytes(found['peak_bytes'])} at the peak); copies "
            f"of the cache would hold {megabytes(found['bytes_of_copies'])}, so that is "
            f"{share:.2f} of it.\n"
        )
    return "\n".join(["## Sessions that are kept\n", *parts]) if parts else ""


def peers() -> str:
    """Who was measured, and how it was set up."""
    told = {
        "segue_session": "one `ChatSession`; `fork`, `save`, `open`, `edit`, `retry`.",
        "stateless": "`mlx_lm.stream_generate` on the whole history each turn. Its tokens are "
        "counted (every turn feeds its whole prompt) over Segue's replies; its times are measured.",
        "hand_kept": "a prompt cache that stays, each new message rendered alone behind it, as "
        "`mlx_lm.chat` does; branches by copying the cache, files by mlx-lm's functions.",
        "mlx_lm_server": "its command at default settings, its prompt cache on, over HTTP; on the "
        "same BLAS as Segue.",
        "llama_cpp": "llama.cpp's server in xllamacpp, at default settings, over HTTP, on "
        "SmolLM2's GGUF file; slots saved and restored by its own endpoints.",
        "transformers_cache": "`generate` with a `DynamicCache` that stays, cropped to the ids it "
        "shares with the prompt, on PyTorch's CPU build.",
    }
    lines = [f"- **{PEERS[name].title}**: {text}" for name, text in told.items()]
    return "\n".join(["## Who was measured\n", *lines, ""])


def write(records: Records) -> str:
    """The whole page."""
    gpu = gpu_section.summary()
    parts = [
        HEAD,
        machine(records),
        fed(records),
        times(records),
        growth(records),
        decoding(records),
        kept(records),
        gpu_section.section(gpu),
        "## What we lose at\n",
        "\n".join(f"- {line}" for line in [*lost(records), *gpu_section.lost(gpu)]) + "\n",
        peers(),
    ]
    return "\n".join(part for part in parts if part)


def main() -> None:
    results, page = [*map(Path, sys.argv[1:3]), *(RESULTS, PAGE)[len(sys.argv) - 1 :]]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(write(Records.read(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
