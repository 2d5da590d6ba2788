"""Other images than those of `data=` at `imgsz`: larger ones for the teacher, and ones without labels.

Files:
    large_images, two_sizes: a teacher that sees larger images than the student, and a data set that has both.
    unlabeled, unlabeled_images: images without labels that join the batches.
    unlabeled_alone: a training whose images all lack labels.
"""
