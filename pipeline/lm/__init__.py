"""Language-model back ends, hook points and splicing."""
