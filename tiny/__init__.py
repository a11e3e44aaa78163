"""The bundled miniature family: its data, its training and the judge that scores its clips."""
