"""Names the action in a video with an exported model, without coco_jax.

python examples/run_exported.py FOLDER a.mp4    # needs av, numpy, safetensors, and jax or onnxruntime
"""

import json
import pathlib
import sys

import av
import numpy as np
import safetensors

folder, video = pathlib.Path(sys.argv[1]), sys.argv[2]
head = json.loads((folder / "export.json").read_text())
if head["file"].endswith(".onnx"):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / head["file"])
    run = lambda clips: session.run(None, {session.get_inputs()[0].name: clips})[0]
else:
    from jax import export

    run = export.deserialize((folder / head["file"]).read_bytes()).call

with av.open(video) as container:  # frames at the times of up to 3 windows
    found = list(container.decode(video=0))
start_N = np.array([float(frame.time - found[0].time) for frame in found])
end, size, steps = 2 * start_N[-1] - start_N[-2], head["size"], np.arange(head["frames"])
clips = []
for part in range(count := min(3, max(int(np.ceil(end / head["window"])), 1))):
    at = (steps + 0.5) / head["frames"] * end
    if head["stride"]:
        room = max(end - steps[-1] * head["stride"], 0)
        at = np.minimum(room * (part + 0.5) / count + steps * head["stride"], end)
    shown = [found[i] for i in np.searchsorted(start_N, at + 1e-6, "right").clip(1) - 1]
    scale = head["short_side"] / min(found[0].width, found[0].height)
    width, height = round(found[0].width * scale), round(found[0].height * scale)
    top, left = (height - size) // 2, (width - size) // 2
    images = [f.reformat(width, height, "rgb24", interpolation="BILINEAR").to_ndarray() for f in shown]
    clips.append(np.stack(images)[:, top : top + size, left : left + size])
row = np.asarray(run(np.stack(clips))).mean(0)
row = row / np.linalg.norm(row) if head["unit_length"] else row
with safetensors.safe_open(folder / "actions.safetensors", "numpy") as table:
    score = table.get_tensor("vectors") @ row + table.get_tensor("bias")
    names = json.loads(table.metadata()["names"])
share = np.exp((score - score.max()) / head["temperature"])
for i in np.argsort(-share)[:5]:
    print(f"{share[i] / share.sum():6.1%}  {names[i]}")
