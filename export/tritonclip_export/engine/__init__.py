"""TensorRT engines of a model repository's two towers.

What needs TensorRT's libraries and a GPU is in `tensorrt_api` alone, behind the protocol of `boundary`.
"""
