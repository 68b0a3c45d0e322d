"""Names the action in a short video with an export (docs/export.md), without coco_jax: FOLDER a.mp4."""

import json
import pathlib
import sys

import av
import numpy as np
import safetensors

folder = pathlib.Path(sys.argv[1])
head = json.loads((folder / "export.json").read_text())
if head["file"].endswith(".onnx"):
    import onnxruntime

    model = onnxruntime.InferenceSession(folder / head["file"])
    run = lambda clips: model.run(None, {model.get_inputs()[0].name: clips})[0]
else:
    from jax import export

    run = export.deserialize((folder / head["file"]).read_bytes()).call
frames = list(av.open(sys.argv[2]).decode(video=0))
starts = np.array([float(frame.time - frames[0].time) for frame in frames])
steps, size, count = np.arange(head["frames"]), head["size"], head["clips"]
end = 2 * starts[-1] - starts[-2]
stride = head["stride"] or end / head["frames"]  # seconds from one frame of a clip to the next
first = max(end - steps[-1] * stride, 0) * (np.arange(count) + 0.5) / count
times = np.minimum(first[:, None] + steps * stride, end)
shown = np.searchsorted(starts, times.ravel() + 1e-6, "right") - 1
scale = head["short_side"] / min(frames[0].width, frames[0].height)
w, h = round(frames[0].width * scale), round(frames[0].height * scale)
scaled = [frames[i].reformat(w, h, "rgb24", interpolation="BILINEAR").to_ndarray() for i in shown]
clips = np.stack([i[(h - size) // 2 :, (w - size) // 2 :][:size, :size] for i in scaled])
row = np.asarray(run(clips.reshape(count, -1, size, size, 3))).mean(0)
row = row / np.linalg.norm(row) if head["unit_length"] else row
with safetensors.safe_open(folder / "actions.safetensors", "numpy") as table:
    score = table.get_tensor("vectors") @ row + table.get_tensor("bias")
    share = np.exp((score - score.max()) / head["temperature"])
    for k in np.argsort(-share)[:5]:
        print(f"{share[k] / share.sum():6.1%}  {json.loads(table.metadata()['names'])[k]}")
