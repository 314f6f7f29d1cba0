# SPDX-License-Identifier: Apache-2.0
"""How often our grader says the same as the graders of other harnesses, on outputs that they published.

    git clone https://github.com/MMMU-Benchmark/MMMU /tmp/mmmu && git -C /tmp/mmmu checkout bb0b95a
    python benchmarks/grader_agreement.py --disagreements /tmp/disagreements.jsonl \
        mmmu_pro:"/tmp/mmmu/mmmu-pro/output/gpt-4o_standard(10 options)_cot.jsonl" \
        mmmu_pro:"/tmp/mmmu/mmmu-pro/output/gpt-4o_standard(10 options)_direct.jsonl" \
        mmmu_pro:/tmp/mmmu/mmmu-pro/output/gpt-4o_vision_cot.jsonl \
        mmmu_pro:/tmp/mmmu/mmmu-pro/output/gpt-4o_vision_direct.jsonl \
        mmmu:/tmp/mmmu/mmmu/example_outputs/qwen_vl mmmu:/tmp/mmmu/mmmu/example_outputs/llava1.5_13b

Each argument is a form of `medvlt import` (reference, lm_eval, lmms_eval, mmmu_pro), a colon and a path; "mmmu" stands
for a folder of MMMU's example outputs, `{subject}/output.json` with the letters its parser read in
`total_val_output.json`. Nothing is downloaded here, and nothing of it belongs into this repository. Prints the counts
as Markdown; who is right on a disagreement can only be read, so the lines go to a file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from medvlt.curation.card import markdown_table
from medvlt.evaluation.runs import iterate_records
from medvlt.evaluation.third_party.agreement import Agreement, agreement_of, reason_rows, summary, verdict_rows
from medvlt.evaluation.third_party.importing import import_outputs
from medvlt.evaluation.third_party.reading import OutputForm


def mmmu_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the multiple-choice questions of MMMU's example outputs as rows of MMMU-Pro's."""
    read = json.loads((folder / "total_val_output.json").read_text(encoding="utf-8"))
    for path in sorted(folder.glob("*/output.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            letter = read.get(row["id"])
            if row["question_type"] == "multiple-choice" and isinstance(letter, str):
                yield {
                    "id": row["id"],
                    "question": "",
                    "options": row["index2ans"],
                    "answer": row["answer"],
                    "response": row["response"],
                    "pred_indexs": letter,
                    "if_right": letter == row["answer"],
                    "subject": path.parent.name,
                }


def compare(form: str, path: Path, scratch: Path) -> Agreement:
    """Returns the agreement on one set of outputs; imported with `repair`, so that broken rows are left out."""
    if form == "mmmu":
        lines = "".join(json.dumps(row) + "\n" for row in mmmu_lines(path))
        path, form = scratch / f"{path.name}.jsonl", "mmmu_pro"
        path.write_text(lines, encoding="utf-8")
    if form not in get_args(OutputForm):
        raise SystemExit(f"expected one of {', '.join(get_args(OutputForm))}, mmmu before the colon, got {form!r}")
    with contextlib.redirect_stdout(io.StringIO()):
        import_outputs(str(path), str(scratch / "run"), form, repair=True, overwrite=True)  # type: ignore[arg-type]
    return agreement_of(iterate_records(scratch / "run"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs="+", metavar="FORM:PATH")
    parser.add_argument("--disagreements", type=Path, help="JSON Lines file for the lines on which the verdicts differ")
    arguments = parser.parse_args()
    total, rows = Agreement(), []
    with tempfile.TemporaryDirectory() as scratch:
        for argument in arguments.outputs:
            form, _, name = argument.partition(":")
            path = Path(name)
            agreement = compare(form, path, Path(scratch))
            for record in agreement.disagreements:
                record["file"] = path.name
            share = f"{agreement.agreed / max(agreement.compared, 1):.2%}"
            rows.append([path.name, agreement.compared, agreement.agreed, share, len(agreement.disagreements)])
            total.update(agreement)
    print(markdown_table(["outputs of", "compared", "agree", "share", "differ"], rows))
    print(f"\n{summary(total)}\n")
    print(markdown_table(*verdict_rows(total)) + "\n")
    print(markdown_table(*reason_rows(total)))
    if arguments.disagreements:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in total.disagreements)
        arguments.disagreements.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
