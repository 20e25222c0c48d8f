package testutil

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// maxChunk bounds what a test may send in one BDAT.
const maxChunk = 64 << 20

// chunk takes a BDAT (RFC 3030). The rule is asked at "BDAT" for each chunk but the last, and at "DOT" for that.
func (s *mxSession) chunk(arg string) bool {
	var size int
	var word string
	if n, _ := fmt.Sscan(arg, &size, &word); n == 0 || size < 0 || size > maxChunk {
		return s.say("501 5.5.4 BDAT SIZE [LAST]")
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(s.r, data); err != nil {
		return false
	}
	if s.mail == nil || len(s.mail.To) == 0 {
		return s.say("503 5.5.1 RCPT first")
	}
	s.chunks = append(s.chunks, data...)
	if !strings.EqualFold(word, "LAST") {
		return s.step("BDAT", arg, "250 2.0.0 chunk taken")
	}
	all := s.chunks
	s.chunks = nil
	ends := bytes.Count(all, []byte("\r\n"))
	if bytes.Count(all, []byte("\r")) != ends || bytes.Count(all, []byte("\n")) != ends || bytes.IndexByte(all, 0) >= 0 || !bytes.HasSuffix(all, []byte("\r\n")) {
		s.mx.note(func() { s.mx.faults = append(s.mx.faults, "bare CR, LF or NUL in chunks") })
	}
	return s.finish(all)
}
