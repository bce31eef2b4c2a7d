"""Text below a node is shown as it is, whether a page takes it for HTML or for Markdown."""

import html
from types import SimpleNamespace

import pytest
from sd_atelier.nodes.progress_text import markup, send


@pytest.mark.parametrize(
    "text",
    [
        "a.txt: -toy, +<b>x</b><img src=x onerror=hit()>",
        "*star*, a_b_c, `code`, [a](http://b), ~~c~~, \\n, &lt;, x | y",
        "- no list\n+ no list\n1. no list\n# no heading\n=== no heading",
        "step 3/10, loss 0.1234, controlled -2.0%, 3.2 s/step",
    ],
)
def test_what_is_shown_is_the_text(text):
    sent = markup(text)
    assert html.unescape(sent).replace("  \n", "\n") == text
    assert not set(sent.replace("&#", "")) & set("<>*_`[]~\\|#")
    assert all(line.lstrip()[:1] not in ("-", "+", "=") for line in sent.splitlines())


def test_plain_words_stay_readable_for_other_clients():
    assert markup("step 3/10, loss 0.1234, rate 1e-4") == "step 3/10, loss 0.1234, rate 1e-4"


def test_it_is_sent_to_the_node():
    sent = []
    send(SimpleNamespace(send_progress_text=lambda text, node: sent.append((text, node))), "a\nb", "7")
    assert sent == [("a  \nb", "7")]
