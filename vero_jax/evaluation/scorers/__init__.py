"""The scorer primitives: each reads an extracted answer against the fields of a row, and knows no benchmark."""
