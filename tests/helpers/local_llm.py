"""An OpenAI-compatible endpoint on loopback: a judge that compares letters, a summariser that copies, a sure rival."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ASKED = "Answer to judge:"
PLAYED = "<reason> I know it.</reason>\n<answer> Paris</answer>"  # of whoever is shown a picture


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][-1]["content"]
        text = PLAYED if not isinstance(prompt, str) else judged(prompt) if ASKED in prompt else summarised(prompt)
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        data = json.dumps({"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def judged(prompt: str) -> str:
    """The verdict by letters; a wrong answer of an odd length gets a reply that cannot be read."""
    golds, answer = re.search(r"will do: <<<(.*?)>>>\nAnswer to judge: <<<(.*?)>>>", prompt, re.DOTALL).groups()
    if answer.lower() in golds.lower().split(" | "):
        return '{"verdict": "correct", "why": "the same letters"}'
    return "Hard to say." if len(answer) % 2 else '{"verdict": "incorrect", "why": "other letters"}'


def summarised(prompt: str) -> str:
    """The results as they stand, one after another."""
    results = re.findall(r"Result \d+: <<<(.*?)>>>", prompt, re.DOTALL)
    return " ".join(" ".join(result.split()) for result in results)


@contextlib.contextmanager
def local_llm() -> Iterator[str]:
    """The endpoint in a thread; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
