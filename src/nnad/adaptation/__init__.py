"""Adaptation of a pretrained network to good images: PANDA, with EWC if asked, and MSAD.

    images -> pixels -> frozen stem (once) -> trained tail -> features, drawn together
    adapted network -> an ONNX file, a backbone like any other

It needs the extra `torch`; what it writes does not. Start at `nnad.adaptation.adapt.adapt`.
"""
