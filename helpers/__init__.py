"""The code that the notebooks share, in the order in which a story flows through it.

    stories     where stories come from: the bundled grammar, TinyStories, or a local file
    tokenizer   words to ids and back
    vectors     fastText word vectors: train, read, stream; the embedding matrix
    memory      checkpointing by hand, the output layer and its loss a few rows at a time, a meter
    of peak memory
    model       the decoder-only transformer and its KV cache, from their basic parts
    training    batches, the loss, the loop, checkpoints
    decoding    generate(): greedy, sampling, beam search, each with or without a cache of keys and
    values
    files       files that are there whole or not at all, and JSON that notices damage
    evaluation  perplexity, the landmarks of a loss curve, what each head attends to, BLEU and the
    50-prompt protocol
    plots       one style; heat-maps, arrows, curves, the beam tree, the explorers with sliders

Importing the package loads none of them.
"""
