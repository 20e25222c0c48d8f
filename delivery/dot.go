package delivery

import (
	"bytes"
	"io"
)

// dotWriter writes a message as DATA wants it (RFC 5321 section 4.5.2): leading dots doubled, a CRLF before the final
// dot. What must never leave is mended on the way: a CR or LF alone becomes CRLF, NUL is dropped. The store holds no
// such thing, so this path is slow and hardly ever taken.
type dotWriter struct {
	w       io.Writer
	middle  bool // the last octet written does not end a line
	pending bool // a CR at the end of the last block waits for its LF
}

var (
	crlf     = []byte("\r\n")
	dot      = []byte(".")
	crlfDot  = []byte("\r\n.")
	finalDot = []byte(".\r\n")
)

// Write takes blocks cut anywhere.
func (d *dotWriter) Write(p []byte) (int, error) {
	n := len(p)
	if n == 0 {
		return 0, nil
	}
	if d.pending {
		d.pending = false
		if p[0] == '\n' {
			p = p[1:]
		}
		if _, err := d.w.Write(crlf); err != nil {
			return 0, err
		}
		d.middle = false
		if len(p) == 0 {
			return n, nil
		}
	}
	if p[len(p)-1] == '\r' {
		d.pending = true
		if p = p[:len(p)-1]; len(p) == 0 {
			return n, nil
		}
	}
	ends := bytes.Count(p, crlf)
	if bytes.Count(p, crlf[:1]) != ends || bytes.Count(p, crlf[1:]) != ends || bytes.IndexByte(p, 0) >= 0 {
		p = mend(p)
	}
	return n, d.clean(p)
}

// clean writes octets in which every CR and LF is part of a CRLF.
func (d *dotWriter) clean(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if !d.middle && p[0] == '.' {
		if _, err := d.w.Write(dot); err != nil {
			return err
		}
	}
	last := p[len(p)-1]
	for {
		i := bytes.Index(p, crlfDot)
		if i < 0 {
			break
		}
		if _, err := d.w.Write(p[:i+3]); err != nil {
			return err
		}
		p = p[i+2:] // the dot again
	}
	d.middle = last != '\n'
	_, err := d.w.Write(p)
	return err
}

// Close ends the message with the final dot; the caller flushes.
func (d *dotWriter) Close() error {
	if d.pending || d.middle {
		if _, err := d.w.Write(crlf); err != nil {
			return err
		}
	}
	_, err := d.w.Write(finalDot)
	return err
}

func mend(p []byte) []byte {
	out := make([]byte, 0, len(p)+64)
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case 0:
		case '\r':
			out = append(out, crlf...)
			if i+1 < len(p) && p[i+1] == '\n' {
				i++
			}
		case '\n':
			out = append(out, crlf...)
		default:
			out = append(out, p[i])
		}
	}
	return out
}
