"""CoCo on features of your own videos (docs/own_data.md): I3D, frozen MiniLM texts; minutes on a CPU.

    coco-jax features VIDEOS --output=own/i3d.npz --labels
    coco-jax data build video_features --data_dir=data --manual_dir=own
    coco-jax data build actionhub/manual --data_dir=data --manual_dir=own/texts

It is configs/kinetics_prototypes_learned.py, which starts from ridge regression, on other data.
"""

from coco_jax.configs import kinetics_prototypes_learned


def get_config():
    c = kinetics_prototypes_learned.get_config()
    c.sweep.split = ()
    c.data.name = "video_features"
    c.text.corpus = "actionhub/manual"
    c.text.definitions = "never"  # prediction knows the names and captions of new actions only
    c.video_tower.extractor = "i3d"
    return c
