"""Mean and standard deviation of CLIP's image channels, for pixels between 0 and 1.

open_clip's models expect them as well. Source: Radford et al. 2021.
"""

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
