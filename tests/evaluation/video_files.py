"""Files of benchmarks about videos, as published, each with a clip or two."""

import json
from pathlib import Path

import pyarrow
from pyarrow import parquet

from tests import clips


def videomme(data: Path) -> None:
    """Two questions about a short clip, one about a long one."""
    head = {"domain": "Knowledge", "sub_category": "Humanity & History", "url": "https://www.youtube.com/watch?v=a"}
    options = ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."]
    rows = [
        head
        | {
            "video_id": video_id,
            "duration": duration,
            "videoID": name,
            "question_id": f"{video_id}-{number}",
            "task_type": task,
            "question": "When demonstrating the Germany modern Christmas tree is initially decorated, what is there?",
            "options": options,
            "answer": "C",
        }
        for video_id, duration, name, number, task in (
            ("001", "short", "fFjv93ACGo8", 1, "Counting Problem"),
            ("001", "short", "fFjv93ACGo8", 2, "OCR Problems"),
            ("601", "long", "-tOhOmNXkVk", 1, "Counting Problem"),
        )
    ]
    path = data / "videomme" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    _clip(data / "data" / "fFjv93ACGo8.mp4")
    _clip(data / "data" / "-tOhOmNXkVk.mp4")


def longvideobench(data: Path) -> None:
    """One question of five options, one of four."""
    row = {
        "video_id": "86CxyhFV9MI",
        "video_path": "86CxyhFV9MI.mp4",
        "subtitle_path": "86CxyhFV9MI_en.json",
        "question": "In the video, which subtitles appear at the same time as the man with black hair?",
        "question_wo_referring_query": "Which subtitles appear at the same time?",
        "candidates": ["promisc has come to an end", "run away", "to the moon", "captain of the boat", "none"],
        "correct_choice": 1,
        "position": [854],
        "topic_category": "NP-News-Programs",
        "question_category": "TOS",
        "level": "L2-Relation",
        "id": "86CxyhFV9MI_0",
        "duration_group": 600,
        "duration": 190.16,
        "starting_timestamp_for_subtitles": 0,
        "view_count": 259852,
    }
    other = row | {"id": "86CxyhFV9MI_1", "candidates": ["a", "b", "c", "d"], "question_category": "S2E"}
    (data / "lvb_val.json").write_text(json.dumps([row, other | {"duration_group": 15}]), encoding="utf-8")
    _clip(data / "videos" / "86CxyhFV9MI.mp4")


def mmbench_video(data: Path) -> None:
    rows = [
        ["index", "video", "video_type", "question", "answer", "dimensions", "video_path"],
        ["1", "0Z5wBr8lNOE", "News", "What is it?", 'A "red" car.', "['Object Recognition', 'OCR']", "./video/x.mp4"],
    ]
    lines = ("\t".join(f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row) for row in rows)
    (data / "MMBench-Video.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _clip(data / "video" / "0Z5wBr8lNOE.mp4")


def _clip(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(clips.clip(frames=5))
