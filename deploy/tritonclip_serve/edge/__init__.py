"""Where callers meet a server: addresses, TLS, and the pages of the metrics port.

endpoints    addresses and ports, the public ones and those behind the edge
options      the flags of `tritonclip serve` about all of it
tls          certificates of the server, and what callers must show
access       how this process reaches its own tritonserver under each of them
listener     bounded TCP and TLS listening
pages        /metrics and /health
http         one HTTP request a connection
pump         bytes from a TLS connection to a port of loopback, and back
server       all of it in a thread
"""
