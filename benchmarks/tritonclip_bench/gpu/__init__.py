"""`tritonclip bench gpu`: how fast the encoders are on a device, how far that is from what the device can do, and why.

device      the GPU, or the CPU with the same code: clocks, memory, what it is called
peaks       what the device can do: matrix products and memory, measured; data sheets
graph       what an ONNX graph costs and where its nodes ran, from ONNX Runtime's own profile
subject     what is measured: a repository's towers, their probes and the embeddings that they should give
runtimes    PyTorch, ONNX Runtime, TensorRT: one interface
series      items a second over batch sizes, every one checked for its answer first
roofline    what could be reached at most
served      the whole server under load
report      JSON and tables
"""
