"""The settings of evaluation, export, logs and the other modes, with meaning, unit and choices."""

from ml_collections import ConfigDict, config_dict


def for_modes(c: ConfigDict) -> None:
    """Adds the groups of the modes to the settings of a run."""
    _others(c)
    _edit(c)
    _evaluate(c)
    _files(c)
    _records(c)


def _others(c: ConfigDict) -> None:
    """Adds the benchmark, restored checkpoints and the search for identifiers."""
    c.benchmark = ConfigDict()  # of --mode=benchmark: many subjects, each a run of its own
    c.benchmark.data = ""  # a copy of the DreamBooth data set, or of a part: the folder of dataset/
    c.benchmark.subjects = ()  # names, "dog3"; () is all that are in the copy
    c.benchmark.num_prompts = 25  # of each subject's 25, evenly taken
    c.benchmark.keep_checkpoints = True  # of finished subjects; False: their exports alone stay
    c.benchmark.trial_steps = 10  # measured to tell how long it will take; 0 does not measure

    c.fleet = ConfigDict()  # of --mode=fleet: many subjects in one program
    c.fleet.table = ""  # a CSV file: name,images,class_noun,identifier (the last may be empty)
    c.fleet.at_once = 8  # subjects that are trained together

    c.restore = ConfigDict()  # checkpoints that --mode=sample and --mode=export take
    c.restore.base = config_dict.placeholder(int)  # step; None is the newest, 0 the untouched model
    c.restore.upscaler = config_dict.placeholder(int)  # the same for the second stage

    c.identify = ConfigDict()  # the table of --mode=identify
    c.identify.tokenizer = ""  # a folder with a tokenizer; "" is the base model's
    c.identify.count = 50  # candidates, best first
    c.identify.num_images = 0  # drawn with each, to rank them by what they change; 0 draws none
    c.identify.num_drawn = 12  # how many of the best by their embeddings are drawn


def _edit(c: ConfigDict) -> None:
    """Adds the editing of photos."""
    c.edit = ConfigDict()  # of --mode=edit: the subject in photos that are there
    c.edit.images = ""  # a photo, or a folder (gs://… too) of photos
    # "sdedit": the mask is drawn from noise, or the photo with noise; "inversion": the noise that
    # leads to the photo; "prompt_to_prompt": scenes that are drawn, with edit.images=""
    c.edit.method = "sdedit"  # how an edit is drawn
    # "files": NAME.mask.png beside each photo, white is what changes; "alpha": what is opaque;
    # "none": the whole picture changes, cropped to the model's shape; found by the model itself:
    # "word": where the source prompt's noun shows; "difference": where prompts read other noise
    c.edit.masks = "files"  # where the mask of each photo is
    c.edit.soft = False  # masks are amounts: grey is edited at a smaller strength
    c.edit.outside = False  # what the mask does not show is changed: the background of a subject
    c.edit.prompts = ("a {subject}",)  # as sample.prompts, of what is in the window afterwards
    c.edit.source_prompt = "a {class_noun}"  # of the photo or scene before: for the other methods
    # "" is the class noun for edit.masks=word, the words that differ for edit.local_blend=word
    c.edit.word = ""  # word of the source prompt whose place is looked for
    # 1 draws from noise alone, less keeps more of the photo. None: 1.0 with a mask, 0.65 without,
    # 0.5 with a cut-out, 0.64 by inversion
    c.edit.strength = config_dict.placeholder(float)  # share of the steps that an edit takes
    c.edit.cutout = ""  # a photo of the subject with its mask: pasted first, then harmonised
    c.edit.cross_steps = 0.8  # share of these steps in which words follow those of the source
    c.edit.self_steps = 0.4  # in which the composition does: less lets shapes change more
    c.edit.words = ()  # factors of words of the prompts: (("snow", 2.0),)
    # Of prompt_to_prompt, found in a first drawing. "word": where one shows the words that
    # differ; "difference": where the two prompts read other noise; "none": the edit may all differ
    c.edit.local_blend = "none"  # the places outside of which an edit is its scene
    c.edit.num_images = 4  # edits of each photo and prompt
    c.edit.grow = 8  # pixels of the photo that a mask grows by; with edit.outside it does not
    c.edit.feather = 4  # pixels over which an edit fades into the photo, within the grown mask
    c.edit.context = 0.5  # of the photo around a mask in its window, as a share of the mask's side
    c.edit.untouched = False  # the untouched base draws the same with the class noun, for the gain


def _evaluate(c: ConfigDict) -> None:
    """Adds the evaluation."""
    c.evaluate = ConfigDict()  # of --mode=evaluate, and of the end of a run
    c.evaluate.at_end = True  # a run ends with scores by the installed encoders, if any
    # "dino_vits16", "clip_vitb32" and so on, as below; () is those that are installed or on disk
    c.evaluate.encoders = ()  # the judges
    c.evaluate.prompts = ()  # as sample.prompts, which () stands for
    c.evaluate.num_images = config_dict.placeholder(int)  # per prompt, for sample.num_images
    c.evaluate.generated = ""  # folder of pictures to judge instead of the run's own
    c.evaluate.untouched = ""  # folder with the same prompts and seeds by the base, for the drift
    c.evaluate.reference = ""  # folder of real photos; "" is subject.images
    c.evaluate.batch_size = 16  # pictures per call of a judge, all devices together
    c.evaluate.resamples = 1000  # draws behind an interval
    # A folder in the layout of transformers, or a hub id; of the two CLIPs as well
    c.evaluate.dino_vits16 = "facebook/dino-vits16"  # the paper's own judge of subjects
    c.evaluate.clip_vitb32 = "openai/clip-vit-base-patch32"  # of prompts, probably the paper's
    c.evaluate.clip_vitl14 = "openai/clip-vit-large-patch14"  # larger, used if named
    # A file; "" is the installed package's (extra: eval)
    c.evaluate.efficientnet_lite0 = ""  # features of an ImageNet classifier
    # A file, or a folder with lpips' state dictionary; "" as above
    c.evaluate.lpips_alex = ""  # perceptual distance
    c.evaluate.lpips_vgg = ""  # the same over VGG16, slow: only if named


def _files(c: ConfigDict) -> None:
    """Adds programs for absent devices, and the export."""
    c.precompile = ConfigDict()  # --mode=precompile: what programs would take on devices not here
    # TPUs by generation and chips a side, v6e:4x4, v4:2x2x1, v5p:2x2x2; GPUs by name and number,
    # h100:8, a100-40gb, a100-80gb, h200, b200, l4, l40s, rtx3090, rtx4090, rtx5090
    c.precompile.topology = "v5e:2x2"  # the accelerators to compile for
    c.precompile.num_slices = 1  # of these chips, or computers, with a slower network between them
    # "sample": drawing class images; "train": the step; "fleet": that of fleet.at_once subjects
    c.precompile.programs = ("sample", "train")  # what is compiled
    c.export = ConfigDict()
    c.export.dtype = "float16"  # of the exported weights: "float16", "bfloat16", "float32"
    c.export.single_file = False  # Stable Diffusion, FLUX.1: one file for A1111 and ComfyUI as well
    c.export.push_to_hub = ""  # "owner/name" of a model hub that the export is sent to; "" is none
    c.export.private = True  # a repository that is made there is seen by its owner alone
    # "model": the whole folder; "lora": its LoRA files; "auto": these, where there are some
    c.export.push_part = "auto"  # what is sent


def _records(c: ConfigDict) -> None:
    """Adds the log and the cache of compiled programs."""
    c.log = ConfigDict()
    # "jsonl": metrics.jsonl, always written; "tensorboard": event files in <workdir>/tensorboard
    # (extra: tensorboard); "wandb", "trackio": these trackers (pip install them)
    c.log.to = ("jsonl",)  # where numbers, pictures, prompts and settings go
    c.log.project = "dreambooth"  # of the trackers
    c.log.profile_at = config_dict.placeholder(int)  # step whose trace goes to <workdir>/profile
    c.log.profile_steps = 3  # steps in that trace
    c.compile = ConfigDict()
    c.compile.cache_dir = ""  # compiled programs; "" is the user's cache folder, "off" is none
