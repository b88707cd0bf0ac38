"""Triton's interpreter without what it repeats: at least twice as fast for kernels with helpers."""

from __future__ import annotations


def patch_language_once() -> None:
    """Let a call of a device function find the language as its launch has left it.

    The interpreter replaces every builtin of `triton.language` when it launches a kernel, and again
    at each call of a function inside, where nothing is left to replace: the search for builtins
    alone was 60 % of the time of a group norm. Where its internals are others, nothing is changed.
    """
    try:
        import triton.language as tl
        from triton.runtime import interpreter

        patch, nothing = interpreter._patch_lang, interpreter._LangPatchScope
        find_dtype = interpreter._get_np_dtype
    except (ImportError, AttributeError):
        return
    dtypes: dict[str, object] = {}  # name of a Triton type -> numpy's, else made at each use

    def remembered(dtype):
        if dtype.name not in dtypes:
            dtypes[dtype.name] = find_dtype(dtype)
        return dtypes[dtype.name]

    def patch_once(function):
        languages = [
            each for each in function.__globals__.values() if each is tl or each is tl.core
        ]
        replaced = not any(tl.core.is_builtin(language.load) for language in languages)
        return nothing() if languages and replaced else patch(function)

    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = remembered
