package contact

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxRow bounds one row of an upload, in bytes.
const MaxRow = 1 << 20

// maxColumns bounds the fields of a row.
const maxColumns = 1000

// csvReader reads comma-separated values as RFC 4180 and the programs that write them have it: LF, CRLF or CR, quoted
// line ends, and any of three delimiters. What is wrong in one row ends with that row.
type csvReader struct {
	r      *bufio.Reader
	text   *encodingOf
	delim  byte
	offset int64 // of the next byte
	line   int64 // of the next byte, from 1

	rowOffset int64 // of the present row
	rowLine   int64
	raw       []byte // the row as it stands in the upload, without its line end
	plain     bool   // nothing in it is quoted: it is its fields with delimiters between them
	whole     string // raw as a text, where the fields share it; else ""
	buf       []byte
	ends      []int // of the fields in buf
	fields    []string
}

func newCSVReader(r *bufio.Reader, text *encodingOf, delim byte) *csvReader {
	c := &csvReader{r: r, text: text, delim: delim, offset: text.skipped, line: 1}
	c.detect()
	return c
}

// detect finds the delimiter from the first line, unless it is given.
func (c *csvReader) detect() {
	if c.delim == 0 {
		line, _ := c.r.Peek(c.r.Size()) // an error comes again when the rows up to it are read
		c.delim = detectDelimiter(line)
	}
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

// next reads one row. It returns io.EOF behind the last, a *RowError for a row that is wrong, another error when the
// upload cannot be read on. Rows without any character are passed over. The fields are valid until the next call.
func (c *csvReader) next() ([]string, error) {
	for {
		c.rowOffset, c.rowLine = c.offset, c.line
		c.raw, c.buf, c.ends, c.fields, c.plain, c.whole = c.raw[:0], c.buf[:0], c.ends[:0], c.fields[:0], true, ""
		empty, err := c.row()
		if err != nil {
			return nil, err
		}
		if empty {
			continue
		}
		if bad := c.decode(); bad != nil {
			return nil, bad
		}
		return c.fields, nil
	}
}

// decode makes texts of the row's bytes.
func (c *csvReader) decode() *RowError {
	c.text.learn(c.buf, c.r)
	start := 0
	if c.text.decoder == nil && utf8.Valid(c.buf) { // all fields share one piece of memory
		if c.plain && len(c.raw) == len(c.buf)+len(c.ends)-1 {
			c.whole = string(c.raw)
			for i, end := range c.ends {
				c.fields = append(c.fields, c.whole[start+i:end+i])
				start = end
			}
			return nil
		}
		text := string(c.buf)
		for _, end := range c.ends {
			c.fields = append(c.fields, text[start:end])
			start = end
		}
		return nil
	}
	for i, end := range c.ends {
		field, bad := c.text.decode(c.buf[start:end])
		if bad != nil {
			bad.Column = strconv.Itoa(i + 1)
			return bad
		}
		c.fields = append(c.fields, field)
		start = end
	}
	return nil
}

// row reads up to the end of a row into buf and ends.
func (c *csvReader) row() (empty bool, err error) {
	var bad *RowError
	quoted, closed, begun := false, false, false // in quotes, behind them, anything in this field
	size := 0
	fail := func(code, detail string) {
		if bad == nil {
			bad = &RowError{Column: strconv.Itoa(len(c.ends) + 1), Code: code, Detail: detail}
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
			return false, readError(err)
		}
		c.offset += c.text.width(b)
		size++
		if b != '\n' && b != '\r' || quoted {
			c.keepRaw(b)
		}
		switch {
		case b == '\n' || b == '\r':
			if b == '\r' {
				if next, _ := c.r.Peek(1); len(next) == 1 && next[0] == '\n' {
					_, _ = c.r.Discard(1)
					c.offset += c.text.width('\n')
					if quoted {
						c.keepRaw('\n')
					}
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
				c.offset += c.text.width('"')
				size++
				c.keepRaw('"')
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
			quoted, begun, c.plain = true, true, false
		case b == '"' || closed && b != ' ':
			fail("csv_quote", "a quote inside a field, or text behind a quoted field")
		case closed:
		default:
			begun = true
			c.keep(b, bad, size)
		}
		if size > MaxRow {
			fail("row_too_long", fmt.Sprintf("a row of more than %d bytes", MaxRow))
			if quoted { // its end cannot be trusted: go on with the next line
				quoted, closed = false, false
			}
		}
	}
}

// keep adds a byte to the present field, unless the row is lost already.
func (c *csvReader) keep(b byte, bad *RowError, size int) {
	if bad == nil && size <= MaxRow {
		c.buf = append(c.buf, b)
	}
}

// maxRaw is how much of a row is kept for a report of what is wrong with it.
const maxRaw = 64 << 10

func (c *csvReader) keepRaw(b byte) {
	if len(c.raw) < maxRaw {
		c.raw = append(c.raw, b)
	}
}

func orNil(e *RowError) error {
	if e == nil {
		return nil
	}
	return e
}

// ReportColumns are what a report of rejected rows adds to the columns of the upload: the row's line in it, the column
// that is wrong, the code, the detail, and the whole row where it could not be parted into fields.
func ReportColumns() []string {
	var names []string
	for _, n := range []string{"line", "column", "code", "detail", "row"} {
		names = append(names, reportPrefix+n)
	}
	return names
}

// SplitRow parts one row as it stood in an upload into n fields; nil where it has not as many.
func SplitRow(raw string, delim byte, n int) []string {
	text := &encodingOf{settled: true}
	c := newCSVReader(bufio.NewReader(strings.NewReader(raw)), text, delim)
	fields, err := c.next()
	if err != nil || len(fields) != n || delim == 0 {
		return nil
	}
	if _, err := c.next(); !errors.Is(err, io.EOF) {
		return nil
	}
	return fields
}
