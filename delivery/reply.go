package delivery

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"relayd/internal/mail"
)

// Bounds of a remote reply. RFC 5321 section 4.5.3.1.5 allows 512 octets a line; some hosts write more.
const (
	maxReplyLine  = 2048
	maxReplyLines = 128
	keptReplyText = 2048 // before mail.ReplyText cuts it further
)

// errReply is wrapped by every error of a reply that breaks the protocol.
var errReply = errors.New("bad reply")

// replyReader reads replies within bounds: whatever the other side sends, it costs a few kilobytes.
type replyReader struct{ br *bufio.Reader }

func newReplyReader(r io.Reader) *replyReader {
	return &replyReader{bufio.NewReaderSize(r, maxReplyLine)}
}

// buffered tells that the other side has said something that nobody asked for yet.
func (r *replyReader) buffered() bool { return r.br.Buffered() > 0 }

// read returns the next reply; lines, when not nil, gets its texts one by one (for EHLO).
func (r *replyReader) read(lines *[]string) (mail.Reply, error) {
	code := 0
	var text strings.Builder
	var status mail.Status
	for n := 0; ; n++ {
		if n == maxReplyLines {
			return mail.Reply{}, fmt.Errorf("%w: more than %d lines", errReply, maxReplyLines)
		}
		line, err := r.line()
		if err != nil {
			return mail.Reply{}, err
		}
		c, more, rest, err := splitReply(line)
		if err != nil {
			return mail.Reply{}, err
		}
		if n > 0 && c != code {
			return mail.Reply{}, fmt.Errorf("%w: codes %d and %d in one reply", errReply, code, c)
		}
		code = c
		if lines != nil {
			*lines = append(*lines, rest)
		}
		if st, after, ok := mail.ParseStatus(rest); ok && st.Class == code/100 && (n == 0 || st == status) {
			status, rest = st, after
		}
		if text.Len() < keptReplyText {
			if text.Len() > 0 && rest != "" {
				text.WriteByte(' ')
			}
			text.WriteString(rest)
		}
		if !more {
			return mail.Reply{Code: code, Status: status, Text: mail.ReplyText(text.String())}, nil
		}
	}
}

// line returns the next line without its end; a bare LF counts as an end, as everywhere in the field.
func (r *replyReader) line() ([]byte, error) {
	b, err := r.br.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("%w: line longer than %d octets", errReply, maxReplyLine)
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return bytes.TrimSuffix(b[:len(b)-1], []byte{'\r'}), nil
}

// splitReply takes a reply line apart (RFC 5321 section 4.2).
func splitReply(line []byte) (code int, more bool, rest string, err error) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || line[1] < '0' || line[1] > '9' || line[2] < '0' || line[2] > '9' {
		return 0, false, "", fmt.Errorf("%w: no code in %q", errReply, mail.CleanText(string(line[:min(len(line), 80)]), 80))
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, false, "", nil
	}
	if line[3] != ' ' && line[3] != '-' {
		return 0, false, "", fmt.Errorf("%w: no blank after code %d", errReply, code)
	}
	return code, line[3] == '-', string(line[4:]), nil
}

// ParseReply reads a reply as an operator writes it down, "550 5.1.1 text", on one line.
func ParseReply(text string) (mail.Reply, error) {
	text = strings.TrimSpace(text)
	word, rest, _ := strings.Cut(strings.Replace(text, "-", " ", boolInt(len(text) > 3 && text[3] == '-')), " ")
	code, err := strconv.Atoi(word)
	if err != nil || code < 200 || code > 599 {
		if st, after, ok := mail.ParseStatus(text); ok { // "5.1.1 text" alone
			return mail.Reply{Code: st.Class*100 + 50*boolInt(st.Class > 2), Status: st, Text: mail.ReplyText(after)}, nil
		}
		return mail.Reply{}, fmt.Errorf("%w: %q does not begin with a code of 200 to 599", errReply, mail.CleanText(text, 80))
	}
	r := mail.Reply{Code: code}
	if st, after, ok := mail.ParseStatus(rest); ok && st.Class == code/100 {
		r.Status, rest = st, after
	}
	r.Text = mail.ReplyText(rest)
	return r, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
