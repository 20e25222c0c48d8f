package mailauth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"relayd/internal/mail"
)

// dkimRecord holds the tags of a key record that matter to a signature (RFC 6376 section 3.6.1).
type dkimRecord struct {
	key     string // k=
	public  string // p=, as bytes
	testing bool   // t=y
}

// parseDKIMRecord parses a key record as a receiver of our mail does.
func parseDKIMRecord(txt string) (dkimRecord, error) {
	rec := dkimRecord{key: "rsa"}
	tags := map[string]string{}
	for i, tag := range strings.Split(strings.TrimSuffix(strings.TrimRight(txt, " \t\r\n"), ";"), ";") {
		name, value, ok := strings.Cut(tag, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" {
			return rec, fmt.Errorf("%q is no tag", mail.CleanText(strings.TrimSpace(tag), 80))
		}
		if _, twice := tags[name]; twice {
			return rec, fmt.Errorf("tag %s stands twice", mail.CleanText(name, 40))
		}
		value = strings.TrimSpace(value)
		tags[name] = value
		if name == "v" && (i > 0 || value != "DKIM1") {
			return rec, errors.New("it does not start with v=DKIM1")
		}
	}
	if k, ok := tags["k"]; ok {
		rec.key = k
	}
	if h, ok := tags["h"]; ok && !listHas(h, "sha256") {
		return rec, errors.New("h= does not allow sha256")
	}
	if s, ok := tags["s"]; ok && !listHas(s, "*") && !listHas(s, "email") {
		return rec, errors.New("s= does not allow email")
	}
	rec.testing = listHas(tags["t"], "y")
	p, ok := tags["p"]
	if !ok {
		return rec, errors.New("it has no p=")
	}
	p = strings.Join(strings.Fields(p), "")
	if p == "" {
		return rec, errors.New("p= is empty: the key is revoked")
	}
	public, err := base64.StdEncoding.DecodeString(p)
	if err != nil {
		return rec, errors.New("p= is not base64; was it cut off?")
	}
	rec.public = string(public)
	return rec, nil
}

func listHas(list, word string) bool {
	return slices.ContainsFunc(strings.Split(list, ":"), func(s string) bool { return strings.TrimSpace(s) == word })
}

// compareDKIM tells in what a published record differs from ours; nil when a signature of our key verifies with it.
func compareDKIM(published, ours string) (testing bool, err error) {
	want, err := parseDKIMRecord(ours)
	if err != nil {
		return false, fmt.Errorf("our own record: %w", err)
	}
	got, err := parseDKIMRecord(published)
	switch {
	case err != nil:
		return false, err
	case got.key != want.key:
		return false, fmt.Errorf("it is a key of type %q, not %q", mail.CleanText(got.key, 40), want.key)
	case got.public != want.public && strings.HasPrefix(want.public, got.public):
		return false, errors.New("p= is cut off: publish the whole value, in pieces of at most 255 characters")
	case got.public != want.public:
		return false, errors.New("it is another key")
	}
	return got.testing, nil
}
