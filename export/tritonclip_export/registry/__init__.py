"""Which CLIP models there are: families, sizes, costs, preprocessing, and which of them the tests exercised.

Everything that is looked up stands in data files beside this module; reading them imports neither torch nor open_clip.

    families.json           which config with which weights belongs to which family: patterns, edited by hand
    extra_models.json       models that open_clip does not have, edited by hand
    hf_text_configs.json    sizes of the text towers that open_clip would ask the hub for, edited by hand
    models.json             written by `python -m tritonclip_export.registry.measure`
    exercised.json          written by `python -m tritonclip_export.registry.table RESULTS.json`
"""
