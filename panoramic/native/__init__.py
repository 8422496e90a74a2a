"""EfficientNets on a CPU in kernels of our own, compiled for the processor at hand.

Libraries take a network one operation after the other. Here what belongs together is done together, while it is in the
processor's caches: an expansion and the depthwise convolution that follows it, for a few channels and rows at a time;
biases, SiLU, residuals, and the sums and gates of the squeeze-and-excitation as part of the products around them.

- `tiles`: the few vector instructions that nearly all of the time is spent in.
- `steps`: what a thread does with them, step after step through a network.
- `plan`: a network as a list of such steps, its weights in the order in which they are read.
- `network`: the buffers and threads that run a plan.

Pictures are (height, width, channels) in memory, channels innermost, float32.
"""
