"""The quickstart's small world: a seed goes in, out come scenes of coloured shapes and handwritten digits as
images, with questions, prompts, and a checker that judges what a model drew. Nothing here imports jax.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.scenes.checker import Verdict, check, detect, score_images
    from unitoken_jax.scenes.dataset import Dataset, DatasetSettings, write_dataset
    from unitoken_jax.scenes.prompts import RequiredObject, Requirement, random_prompt
    from unitoken_jax.scenes.questions import Question, ask, score_answers
    from unitoken_jax.scenes.scene import Scene, SceneObject, draw, random_scene

# What the manifest of a model of the small world says: fine-tuning then has it rehearse scenes.
MANIFEST = {"rehearsal": "scenes"}
