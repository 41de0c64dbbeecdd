"""`showtell serve`: a web page and an HTTP API that caption images with one model.

A request passes `access.py` (who may ask), `limits.py` (how large a body), `app.py` (routes),
`request_body.py` (multipart or JSON), `image_decoder.py` (bytes to pixels, in threads) and
`queue.py` (pixels to captions, in batches).
"""
