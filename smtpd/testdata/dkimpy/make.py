#!/usr/bin/python3
# Makes the vectors beside this file with dkimpy (Debian's python3-dkim and python3-nacl): NAME.eml is a message, and
# vectors.json tells the key records and what a verifier must say of each message.
import base64, json, os, subprocess
import dkim, nacl.signing

here = os.path.dirname(os.path.abspath(__file__))
rsa = subprocess.run(["openssl", "genrsa", "-traditional", "2048"], capture_output=True, check=True).stdout
pub = subprocess.run(["openssl", "rsa", "-pubout", "-outform", "DER"], input=rsa, capture_output=True, check=True).stdout
ed = nacl.signing.SigningKey.generate()
edkey = base64.b64encode(bytes(ed))
records = {
    "r._domainkey.sender.example": "v=DKIM1; k=rsa; p=" + base64.b64encode(pub).decode(),
    "e._domainkey.sender.example": "v=DKIM1; k=ed25519; p=" + base64.b64encode(bytes(ed.verify_key)).decode(),
    "gone._domainkey.sender.example": "v=DKIM1; k=rsa; p=",
}
plain = b"From: A <a@sender.example>\r\nTo: b@dest.example\r\nSubject: hello  there\r\nDate: Fri, 20 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@sender.example>\r\n\r\nHello\t world \r\n.dot\r\n\r\n\r\n"
utf8 = "From: A <a@sender.example>\r\nSubject: =?utf-8?q?=ED=95=9C?=\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n안녕하세요\r\n".encode()
empty = b"From: a@sender.example\r\nSubject: no body\r\n\r\n"
fold = b"From: a@sender.example\r\nSubject: a long\r\n  folded\r\n\tsubject\r\nX-Two: 1\r\nX-Two: 2\r\n\r\nx\r\n"
vectors = []

def add(name, msg, want):
    open(os.path.join(here, name + ".eml"), "wb").write(msg)
    vectors.append({"name": name, "want": want})

def sign(msg, algo=b"rsa-sha256", canon=(b"relaxed", b"relaxed"), selector=None, headers=None):
    key, sel = (rsa, b"r") if algo == b"rsa-sha256" else (edkey, b"e")
    return dkim.sign(msg, selector or sel, b"sender.example", key, signature_algorithm=algo, canonicalize=canon, include_headers=headers) + msg

for h in (b"simple", b"relaxed"):
    for b in (b"simple", b"relaxed"):
        add(f"rsa-{h.decode()}-{b.decode()}", sign(plain, canon=(h, b)), ["pass"])
for name, msg in (("utf8", utf8), ("empty", empty), ("folded", fold)):
    add("ed25519-" + name, sign(msg, algo=b"ed25519-sha256"), ["pass"])
    add("rsa-" + name, sign(msg), ["pass"])
add("both", sign(sign(plain), algo=b"ed25519-sha256"), ["pass", "pass"])
add("changed-body", sign(plain).replace(b"Hello", b"Hallo"), ["fail"])
add("changed-subject", sign(plain).replace(b"hello  there", b"hello theirs"), ["fail"])
add("relaxed-blanks", sign(plain).replace(b"hello  there", b"hello     there").replace(b"Hello\t world \r\n", b"Hello   world\r\n"), ["pass"])
add("simple-blanks", sign(plain, canon=(b"simple", b"simple")).replace(b"Hello\t world \r\n", b"Hello world\r\n"), ["fail"])
add("second-from", b"From: evil@bank.example\r\n" + sign(plain, headers=[b"from", b"from", b"to", b"subject", b"date"]), ["fail"])
add("revoked", sign(plain, selector=b"gone"), ["permerror"])
add("no-key", sign(plain, selector=b"never"), ["permerror"])
add("one-of-two", sign(sign(plain), algo=b"ed25519-sha256").replace(b"s=e;", b"s=r;"), ["permerror", "pass"])
json.dump({"records": records, "vectors": vectors}, open(os.path.join(here, "vectors.json"), "w"), indent=1)
