package campaign

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxRow bounds one row of an upload.
const maxRow = 1 << 20

// maxColumns bounds the fields of a row.
const maxColumns = 1000

// rowError is what is wrong with one row; the rows behind it are read all the same.
type rowError struct {
	column string
	value  string
	code   string
	detail string
}

func (e *rowError) Error() string { return e.code + ": " + e.detail }

// csvReader reads comma-separated values as RFC 4180 and the programs that write them have it: LF, CRLF or CR, quoted
// line ends, and any of three delimiters. What is wrong in one row ends with that row.
type csvReader struct {
	r      *bufio.Reader
	delim  byte
	offset int64 // of the next byte
	line   int64 // of the next byte, from 1

	rowOffset int64 // of the present row
	rowLine   int64
	buf       []byte
	ends      []int // of the fields in buf
	fields    []string
}

func newCSVReader(r io.Reader, delim byte) *csvReader {
	return &csvReader{r: bufio.NewReaderSize(r, 64<<10), delim: delim, line: 1}
}

// start skips a byte order mark and finds the delimiter from the first line.
func (c *csvReader) start() error {
	head, err := c.r.Peek(3)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read upload: %w", err)
	}
	if bytes.Equal(head, []byte("\xef\xbb\xbf")) {
		n, _ := c.r.Discard(3)
		c.offset += int64(n)
	} else if bytes.HasPrefix(head, []byte("\xff\xfe")) || bytes.HasPrefix(head, []byte("\xfe\xff")) {
		return &Invalid{Code: "invalid_encoding", Detail: "the upload is UTF-16: save it as UTF-8"}
	} else if bytes.HasPrefix(head, []byte("\x1f\x8b")) {
		return &Invalid{Code: "invalid_encoding", Detail: "the upload is compressed: send it as plain text"}
	}
	if c.delim != 0 {
		return nil
	}
	line, _ := c.r.Peek(c.r.Size()) // an error comes again when the rows up to it are read
	c.delim = detectDelimiter(line)
	return nil
}

// detectDelimiter takes the one that the header has most of, outside of quotes.
func detectDelimiter(b []byte) byte {
	var n [3]int
	quoted := false
	for _, c := range b {
		if c == '"' {
			quoted = !quoted
		}
		if quoted {
			continue
		}
		if c == '\n' || c == '\r' {
			break
		}
		if i := bytes.IndexByte([]byte(",;\t"), c); i >= 0 {
			n[i]++
		}
	}
	best := 0
	for i := range n {
		if n[i] > n[best] {
			best = i
		}
	}
	return ",;\t"[best]
}

// next reads one row. It returns io.EOF behind the last, a *rowError for a row that is wrong, another error when the
// upload cannot be read on. Rows without any character are passed over. The fields are valid until the next call.
func (c *csvReader) next() ([]string, error) {
	for {
		c.rowOffset, c.rowLine = c.offset, c.line
		c.buf, c.ends, c.fields = c.buf[:0], c.ends[:0], c.fields[:0]
		empty, err := c.row()
		if err != nil {
			return nil, err
		}
		if empty {
			continue
		}
		if !utf8.Valid(c.buf) {
			return nil, c.notUTF8()
		}
		text, start := string(c.buf), 0
		for _, end := range c.ends {
			c.fields = append(c.fields, text[start:end])
			start = end
		}
		return c.fields, nil
	}
}

func (c *csvReader) notUTF8() *rowError {
	start := 0
	for i, end := range c.ends {
		if !utf8.Valid(c.buf[start:end]) {
			return &rowError{
				column: fmt.Sprint(i + 1), value: string(bytes.ToValidUTF8(c.buf[start:end], []byte("?"))),
				code: "invalid_utf8", detail: "bytes that are not UTF-8",
			}
		}
		start = end
	}
	return &rowError{code: "invalid_utf8", detail: "bytes that are not UTF-8"}
}

// row reads up to the end of a row into buf and ends.
func (c *csvReader) row() (empty bool, err error) {
	var bad *rowError
	quoted, closed, begun := false, false, false // in quotes, behind them, anything in this field
	size := 0
	fail := func(code, detail string) {
		if bad == nil {
			bad = &rowError{column: fmt.Sprint(len(c.ends) + 1), code: code, detail: detail}
		}
	}
	for {
		b, err := c.r.ReadByte()
		if errors.Is(err, io.EOF) {
			if size == 0 {
				return false, io.EOF
			}
			if quoted {
				fail("csv_quote", "a quoted field without its end")
			}
			c.ends = append(c.ends, len(c.buf))
			return false, orNil(bad)
		}
		if err != nil {
			return false, fmt.Errorf("read upload: %w", err)
		}
		c.offset++
		size++
		switch {
		case b == '\n' || b == '\r':
			if b == '\r' {
				if next, _ := c.r.Peek(1); len(next) == 1 && next[0] == '\n' {
					_, _ = c.r.Discard(1)
					c.offset++
				}
			}
			c.line++
			if quoted {
				c.keep('\n', bad, size)
				continue
			}
			if size == 1 {
				return true, nil
			}
			c.ends = append(c.ends, len(c.buf))
			return false, orNil(bad)
		case quoted && b == '"':
			if next, _ := c.r.Peek(1); len(next) == 1 && next[0] == '"' {
				_, _ = c.r.Discard(1)
				c.offset++
				size++
				c.keep('"', bad, size)
			} else {
				quoted, closed = false, true
			}
		case quoted:
			c.keep(b, bad, size)
		case b == c.delim:
			if len(c.ends) >= maxColumns {
				fail("csv_field_count", fmt.Sprintf("more than %d fields", maxColumns))
			} else {
				c.ends = append(c.ends, len(c.buf))
			}
			closed, begun = false, false
		case b == '"' && !begun && !closed:
			quoted, begun = true, true
		case b == '"' || closed && b != ' ':
			fail("csv_quote", "a quote inside a field, or text behind a quoted field")
		case closed:
		default:
			begun = true
			c.keep(b, bad, size)
		}
		if size > maxRow {
			fail("row_too_long", fmt.Sprintf("a row of more than %d bytes", maxRow))
			if quoted { // its end cannot be trusted: go on with the next line
				quoted, closed = false, false
			}
		}
	}
}

// keep adds a byte to the present field, unless the row is lost already.
func (c *csvReader) keep(b byte, bad *rowError, size int) {
	if bad == nil && size <= maxRow {
		c.buf = append(c.buf, b)
	}
}

func orNil(e *rowError) error {
	if e == nil {
		return nil
	}
	return e
}
