"""Django's own server with threads: ``serve.py PORT DATABASE``."""

import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
os.environ["DJANGO_DATABASE"] = sys.argv[2]

from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application

server = ThreadedWSGIServer(("127.0.0.1", int(sys.argv[1])), WSGIRequestHandler)
server.set_app(get_wsgi_application())
server.serve_forever()
