"""The reflex: frequency measured and answered on a native thread, without the interpreter."""
