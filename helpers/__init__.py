"""The code that the notebooks share. Each module imports only modules that stand above it here.

    support/         files that are whole or not there, refusals, hardware, the Hub
    tokenizer        words to ids and back
    kv_cache         keys and values that decoding keeps
    memory           gradient checkpointing by hand, and a meter of peak memory
    loss             the output layer and its cross-entropy in chunks; the loss of a batch
    model            the decoder-only transformer, from its basic parts
    grammar          the grammar of the bundled stories: it knows the probability of each word
    stories          where stories come from: the grammar, TinyStories, a file or folder
    fasttext_bin     the reader of fastText's binary files
    vectors          word vectors: train, read, stream; the embedding matrix
    checkpoints      trained models and saved runs on disk, models from the Hub
    muon             the optimizer: Muon for matrices, AdamW for the rest
    training         settings, learning rate, optimizer step, the loop
    decoding         generate(): greedy, sampling, beam search, with or without the cache
    evaluation       perplexity, bits per character, landmarks, BLEU, the 50-prompt protocol
    heads            the patterns of attention heads, and their scores
    recipe           from a corpus to a trained model, in Python and as a command
    plots            one style; curves, bars, maps
    attention_plots  heat-maps and arrows of attention
    explorers        pictures with sliders
    notebook         what a cell shows and keeps: figures, numbers, tables, source, claims

Importing the package loads none of them.
"""
