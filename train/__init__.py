"""Everything that ends with training.

commands.py        boxseg train
data_commands.py   boxseg data scenes, check, depth
recipe.py          the settings of a run, read from YAML
scenes.py          rendered scenes with exact boxes, masks and depth
coco.py            COCO boxes as a data set; masks are dropped at the door
depth_maps.py      depth maps from a foreign network
data_check.py      every defect of an annotation file in one pass
transforms.py      scale and flip; batches
data_order.py      which images an optimizer step sees
assigner.py        which locations learn which object
affinity.py        which neighbouring pixels look alike, by colour or by depth
memory_bank.py     objects of earlier images, and which of them are pasted where
copy_paste.py      pastes them into an image and all of its targets
losses.py          pure functions
criterion.py       the terms that a recipe lists
depth_head.py      guides masks by depth while they are trained
engine.py          the loop: step, validation, saving, resuming
run_lock.py        a run folder belongs to one process at a time
interrupts.py      requests to end, heeded where nothing is lost
bound_process.py   a command that ends with the process that started it
transfer.py        start from another model
trainer_state.py   trainer.pt
reports.py         progress, metrics.csv, TensorBoard, curves and pictures
"""
