package dkim

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"relayd/internal/mail"
)

// TXTLookup finds the TXT records of a name, each with its strings joined. An error whose Temporary method says true, or
// that of an ended context, makes a temperror; every other one means that there is no key.
type TXTLookup interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

// The results of a verification (RFC 8601 section 2.7.1).
const (
	ResultPass      = "pass"
	ResultFail      = "fail"
	ResultTempError = "temperror"
	ResultPermError = "permerror"
)

// Verification is the verdict on one signature.
type Verification struct {
	Domain    string `json:"domain"`
	Selector  string `json:"selector"`
	Algorithm string `json:"algorithm"` // the a= tag, such as rsa-sha256
	Result    string `json:"result"`    // pass, fail, temperror, permerror
	Error     string `json:"error,omitempty"`
}

// Limits of Verify. go-msgauth joins folded lines one by one and looks through all fields for every name of h=, so that
// both numbers are bounded and not only the size; it keeps blank lines for each signature until it knows whether they end the
// body, and with simple canonicalization looks at all of them again for each block that it reads.
const (
	maxVerifications = 10
	maxVerifyHeader  = 256 << 10
	maxVerifyLines   = 5000
	maxVerifyPicks   = 200_000  // names in one h= times fields
	maxBlank         = 32 << 10 // octets of blank lines in one place
)

// ErrHeaderTooLarge tells that the header section of a message to verify has more than 256 KiB or 5000 lines.
var ErrHeaderTooLarge = errors.New("header section too large")

// Verify checks the signatures of a message, at most the first 10, in the order in which they stand. It reads r to its
// end; the caller bounds its length. Where the body has more than 32 KiB of blank lines in one place, every verdict is
// permerror. No signature is an empty list. An error means that r could not be read or has no
// header section; what is wrong with a signature stands in its Verification.
func Verify(ctx context.Context, r io.Reader, txt TXTLookup) ([]Verification, error) {
	br := bufio.NewReader(r)
	header, err := readHeader(br)
	if err != nil {
		return nil, fmt.Errorf("verify message: %w", err)
	}
	found, err := signatures(header)
	if err != nil {
		return nil, fmt.Errorf("verify message: %w", err)
	}
	if len(found) == 0 {
		return []Verification{}, nil
	}
	body := &blankCutter{r: br}
	verdicts, err := msgauth.VerifyWithOptions(io.MultiReader(bytes.NewReader(header), body), &msgauth.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) {
			records, err := txt.LookupTXT(ctx, name)
			if err != nil && temporary(err) {
				return nil, &net.DNSError{Err: err.Error(), Name: name, IsTemporary: true}
			}
			return records, err
		},
		MaxVerifications: maxVerifications,
	})
	if err != nil && !errors.Is(err, msgauth.ErrTooManySignatures) {
		return nil, fmt.Errorf("verify message: %w", err)
	}
	if len(found) != len(verdicts) { // our reading of the header differs; never match a verdict with the wrong signature
		return nil, fmt.Errorf("verify message: %d signatures found, %d judged", len(found), len(verdicts))
	}
	for i := range found {
		if found[i].judge(verdicts[i].Err); body.cut { // what was judged is not the message
			found[i].Result, found[i].Error = ResultPermError, "body has more than 32 KiB of blank lines in one place"
		}
	}
	return found, nil
}

// blankCutter reads a body, and ends it where it has more blanks and line ends in one place than maxBlank. An error in their place
// would leave go-msgauth's goroutines waiting for ever.
type blankCutter struct {
	r   io.Reader
	run int
	cut bool
}

// Read implements io.Reader.
func (c *blankCutter) Read(p []byte) (int, error) {
	if c.cut {
		return 0, io.EOF
	}
	n, err := c.r.Read(p)
	for i, b := range p[:n] {
		if b != '\r' && b != '\n' && b != ' ' && b != '\t' {
			c.run = 0
		} else if c.run++; c.run > maxBlank {
			c.cut = true
			return i, io.EOF
		}
	}
	return n, err
}

func (v *Verification) judge(err error) {
	switch {
	case err == nil:
		v.Result = ResultPass
		return
	case msgauth.IsTempFail(err):
		v.Result = ResultTempError
	case msgauth.IsPermFail(err):
		v.Result = ResultPermError
	default:
		v.Result = ResultFail
	}
	v.Error = mail.CleanText(strings.TrimPrefix(err.Error(), "dkim: "), 300)
}

func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary() || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// readHeader reads the header section with the empty line that ends it, both with CRLF line ends.
func readHeader(r *bufio.Reader) ([]byte, error) {
	var header []byte
	for lines := 0; ; lines++ {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if len(header)+len(line) > maxVerifyHeader || lines > maxVerifyLines {
			return nil, ErrHeaderTooLarge
		}
		header = append(header, line...)
		if n := len(header); bytes.HasSuffix(header, []byte("\n")) && (n < 2 || header[n-2] != '\r') {
			header = append(header[:n-1], crlf...)
		}
		if bytes.HasSuffix(header, []byte("\r\n\r\n")) || bytes.Equal(header, crlf) {
			return header, nil
		}
		if errors.Is(err, io.EOF) { // a message without a body
			if !bytes.HasSuffix(header, crlf) {
				header = append(header, crlf...)
			}
			return append(header, crlf...), nil
		}
	}
}

// signatures returns one Verification per signature field, at most maxVerifications. It takes for a field what go-msgauth
// takes for one, which is more than mail.ParseHeader does.
func signatures(header []byte) ([]Verification, error) {
	var fields [][]byte // each with its folding
	for start, at := 0, 0; at < len(header); {
		at += bytes.Index(header[at:], crlf) + len(crlf)
		if at == len(header) || header[at] != ' ' && header[at] != '\t' {
			fields = append(fields, header[start:at])
			start = at
		}
	}
	found := []Verification{}
	for _, field := range fields {
		name, value, _ := bytes.Cut(field, []byte{':'})
		if !strings.EqualFold(string(bytes.TrimSpace(name)), fieldName) || len(found) == maxVerifications {
			continue
		}
		v := Verification{Result: ResultPermError}
		for tag := range strings.SplitSeq(string(value), ";") {
			name, text, _ := strings.Cut(tag, "=")
			if name = strings.TrimSpace(name); name == "h" && strings.Count(text, ":")*len(fields) > maxVerifyPicks {
				return nil, ErrHeaderTooLarge
			}
			text = mail.CleanText(strings.Join(strings.Fields(text), ""), 255)
			switch name {
			case "d":
				v.Domain = text
			case "s":
				v.Selector = text
			case "a":
				v.Algorithm = text
			}
		}
		found = append(found, v)
	}
	return found, nil
}
