package contact

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/korean"
	utf16 "golang.org/x/text/encoding/unicode"

	"relayd/internal/mail"
)

// encodingOf is the character encoding of an upload. UTF-16 is translated as a stream. All others leave the ASCII
// characters that part rows and fields alone, so that rows are found in the bytes as they came, and only fields are
// translated: what is told of a place in the upload holds for the file that its sender has.
type encodingOf struct {
	name    string // in reports
	decoder *encoding.Decoder
	wide    bool  // it was UTF-16: what is read is its translation
	settled bool  // the encoding is declared, or was recognised
	skipped int64 // bytes of the byte order mark
}

// errEncoding is about an upload that cannot be read at all.
func errEncoding(format string, args ...any) error {
	return &InvalidError{Code: "invalid_encoding", Detail: fmt.Sprintf(format, args...)}
}

func readError(err error) error {
	if bad, ok := errors.AsType[*InvalidError](err); ok {
		return bad
	}
	return fmt.Errorf("read upload: %w", err)
}

// openText unpacks an upload and finds its encoding. charset is what its sender declares, "" for nothing.
func openText(r io.Reader, charset string) (*bufio.Reader, *encodingOf, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, readError(err)
	}
	if packing := packingOf(head); packing != "" {
		if in, err = unpack(in, packing); err != nil {
			return nil, nil, err
		}
		if head, err = in.Peek(3); err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, readError(err)
		}
	}
	e := &encodingOf{name: "utf-8"}
	switch {
	case bytes.HasPrefix(head, []byte("\xef\xbb\xbf")):
		n, _ := in.Discard(3)
		e.skipped, e.settled = int64(n), true
		return in, e, nil
	case bytes.HasPrefix(head, []byte("\xff\xfe")), bytes.HasPrefix(head, []byte("\xfe\xff")):
		order := utf16.LittleEndian
		if e.name = "utf-16le"; head[0] == 0xfe {
			order, e.name = utf16.BigEndian, "utf-16be"
		}
		n, _ := in.Discard(2)
		e.skipped, e.settled, e.wide = int64(n), true, true
		return bufio.NewReaderSize(utf16.UTF16(order, utf16.IgnoreBOM).NewDecoder().Reader(in), 64<<10), e, nil
	}
	return in, e, e.declare(charset)
}

// declare takes the sender's word for the encoding.
func (e *encodingOf) declare(charset string) error {
	switch charset = strings.ToLower(strings.TrimSpace(charset)); charset {
	case "":
		return nil
	case "utf-8", "utf8", "us-ascii":
		e.settled = true
		return nil
	case "cp949", "ms949", "windows-949", "uhc":
		charset = "euc-kr" // of which it is the larger form, that everybody means
	}
	known, err := htmlindex.Get(charset)
	if err != nil {
		return errEncoding("charset %q is not known", mail.CleanText(charset, 40))
	}
	name, err := htmlindex.Name(known)
	if err != nil || strings.HasPrefix(name, "utf-16") || name == "iso-2022-jp" || name == "replacement" {
		return errEncoding("charset %q: save the file as UTF-8, or as UTF-16 with a byte order mark", mail.CleanText(charset, 40))
	}
	if name != "utf-8" {
		e.decoder = known.NewDecoder()
	}
	e.name, e.settled = name, true
	return nil
}

// learn recognises the encoding by the first row that is not plain ASCII, and by what waits behind it.
func (e *encodingOf) learn(row []byte, ahead *bufio.Reader) {
	if e.settled || isASCII(row) {
		return
	}
	e.settled = true
	more, _ := ahead.Peek(ahead.Buffered())
	if i := bytes.LastIndexByte(more, '\n'); i >= 0 {
		more = more[:i] // whole rows only
	} else {
		more = nil
	}
	if utf8.Valid(row) && (utf8.Valid(more) || !isKorean(more)) {
		return
	}
	if isKorean(row) {
		e.decoder, e.name = korean.EUCKR.NewDecoder(), "euc-kr"
	}
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// isKorean tells whether b makes sense as EUC-KR or CP949: nothing of it is undefined, and most of what is not ASCII is
// Hangul or Han.
func isKorean(b []byte) bool {
	text, err := korean.EUCKR.NewDecoder().Bytes(b)
	if err != nil {
		return false
	}
	letters, others := 0, 0
	for _, r := range string(text) {
		switch {
		case r == utf8.RuneError:
			return false
		case unicode.Is(unicode.Hangul, r), unicode.Is(unicode.Han, r):
			letters++
		case r >= utf8.RuneSelf:
			others++
		}
	}
	return letters > others
}

// decode makes a text of one field.
func (e *encodingOf) decode(b []byte) (string, *RowError) {
	if e.decoder == nil {
		if !utf8.Valid(b) {
			return "", &RowError{Code: "invalid_utf8", Value: string(bytes.ToValidUTF8(b, []byte("?"))), Detail: "bytes that are not UTF-8"}
		}
		return string(b), nil
	}
	if isASCII(b) {
		return string(b), nil
	}
	text, err := e.decoder.Bytes(b)
	if err != nil || bytes.ContainsRune(text, utf8.RuneError) {
		return "", &RowError{Code: "invalid_encoding", Value: strings.ReplaceAll(string(text), "\ufffd", "?"), Detail: "bytes that are not " + e.name}
	}
	return string(text), nil
}

// width is how many bytes of the upload a byte of what is read stands for.
func (e *encodingOf) width(b byte) int64 {
	switch {
	case !e.wide:
		return 1
	case b < 0x80, b >= 0xc0 && b < 0xf0:
		return 2
	case b >= 0xf0:
		return 4 // a surrogate pair
	}
	return 0
}
