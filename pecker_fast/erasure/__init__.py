"""What `erase`, `mask` and `demo` do, to be called from Python; `pecker_fast.erase` is the door.

One run (`run`) for three kinds of it: a class by distillation or by a method on real images
(`classes`), concepts of a text-to-image pipeline (`concepts`). A `Request` says what is asked for.
"""
