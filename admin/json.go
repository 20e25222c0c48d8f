package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"relayd/internal/api"
)

// maxDepth is how deep a JSON body may nest.
const maxDepth = 64

// readJSON reads the body of a route that takes JSON. A simple form of another site cannot send this media type, so that
// a browser on the admin's machine is no way in.
func (s *Server) readJSON(r *request) error {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if r.ContentLength == 0 && r.Header.Get("Content-Type") == "" {
		return nil
	}
	if err != nil || mediaType != "application/json" {
		return &api.Problem{
			Status: http.StatusUnsupportedMediaType, Code: api.CodeUnsupportedMediaType,
			Detail: "The body must be application/json.",
		}
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return &api.Problem{
			Status: http.StatusUnsupportedMediaType, Code: api.CodeUnsupportedMediaType,
			Detail: "The body must not be compressed.",
		}
	}
	if r.ContentLength > r.route.limit {
		return tooLarge()
	}
	var b bytes.Buffer
	if r.ContentLength > 0 {
		b.Grow(int(min(r.ContentLength, 1<<20)) + bytes.MinRead)
	}
	if _, err := b.ReadFrom(newUploadReader(r, r.route.limit)); err != nil {
		return err
	}
	r.body = b.Bytes()
	return checkJSON(r.body)
}

// bodyError is about a body that could not be read to its end.
func bodyError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &api.Problem{Status: http.StatusBadRequest, Code: api.CodeInvalidParameter, Detail: "The body ends too early."}
	}
	return err
}

func badJSON(detail string) *api.Problem {
	return &api.Problem{Status: http.StatusBadRequest, Code: api.CodeInvalidJSON, Detail: detail}
}

// checkJSON refuses what encoding/json would take in silence: invalid UTF-8, names that stand twice in one object, and
// deep nesting.
func checkJSON(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if !utf8.Valid(b) {
		return badJSON("The body is not UTF-8.")
	}
	if depth := depthOf(b); depth > maxDepth {
		return badJSON(fmt.Sprintf("The body nests deeper than %d levels.", maxDepth))
	}
	if err := syntaxOf(b); err != nil {
		return err
	}
	if name, twice := duplicateName(b); twice {
		return badJSON(fmt.Sprintf("The name %.100q stands twice in one object.", name))
	}
	return nil
}

// syntaxOf tells where b stops to be one JSON value.
func syntaxOf(b []byte) error {
	if json.Valid(b) {
		return nil
	}
	var raw json.RawMessage
	err := json.Unmarshal(b, &raw)
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return badJSON(fmt.Sprintf("The body is not JSON: %s (byte %d).", e.Error(), e.Offset))
	}
	return badJSON("The body is not JSON.")
}

// depthOf is the deepest nesting. Strings are skipped; b need not be valid.
func depthOf(b []byte) int {
	depth, deepest := 0, 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i = stringEnd(b, i)
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		}
	}
	return deepest
}

// stringEnd returns where the string ends that begins at i: the index of its last quote, or len(b).
func stringEnd(b []byte, i int) int {
	for i++; i < len(b) && b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i
}

// duplicateName finds a name that stands twice in one object of the valid JSON b.
func duplicateName(b []byte) (string, bool) {
	// One set of names per open object; nil for an open array. Sets are reused: a list of recipients has many objects.
	var open []*nameSet
	var free []*nameSet
	expectName := false
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{':
			if len(free) == 0 {
				free = append(free, &nameSet{})
			}
			set := free[len(free)-1]
			free = free[:len(free)-1]
			open, expectName = append(open, set), true
		case '[':
			open, expectName = append(open, nil), false
		case '}', ']':
			last := open[len(open)-1]
			open, expectName = open[:len(open)-1], false
			if last != nil {
				last.reset()
				free = append(free, last)
			}
		case ',':
			expectName = len(open) > 0 && open[len(open)-1] != nil
		case '"':
			end := stringEnd(b, i)
			if expectName {
				expectName = false
				if name := nameOf(b[i : end+1]); !open[len(open)-1].add(name) {
					return string(name), true
				}
			}
			i = end
		}
	}
	return "", false
}

// nameOf shares memory with quoted where it can.
func nameOf(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	var name string
	_ = json.Unmarshal(quoted, &name)
	return []byte(name)
}

// nameSet is a list while it is short, for most objects are.
type nameSet struct {
	few  [][]byte
	many map[string]struct{}
}

const fewNames = 12

func (s *nameSet) reset() { s.few, s.many = s.few[:0], nil }

// add tells whether name is new.
func (s *nameSet) add(name []byte) bool {
	if s.many == nil {
		for _, known := range s.few {
			if bytes.Equal(known, name) {
				return false
			}
		}
		if s.few = append(s.few, name); len(s.few) > fewNames {
			s.many = make(map[string]struct{}, 2*len(s.few))
			for _, known := range s.few {
				s.many[string(known)] = struct{}{}
			}
		}
		return true
	}
	if _, known := s.many[string(name)]; known {
		return false
	}
	s.many[string(name)] = struct{}{}
	return true
}

// decode reads the checked body into v and says precisely what does not fit.
func (r *request) decode(v any) error {
	if len(bytes.TrimSpace(r.body)) == 0 {
		return badJSON("The body is empty.")
	}
	d := json.NewDecoder(bytes.NewReader(r.body))
	d.DisallowUnknownFields()
	d.UseNumber() // merge data: an order number of 20 digits stays as it is
	err := d.Decode(v)
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		detail := fmt.Sprintf("A JSON %s does not fit: %s is expected.", e.Value, typeName(e.Type.Kind().String(), e.Type.String()))
		return &api.Problem{
			Status: http.StatusBadRequest, Code: api.CodeInvalidParameter, Detail: detail,
			Errors: []api.FieldError{{Pointer: pointerOf(e.Field), Code: api.CodeInvalidParameter, Detail: detail}},
		}
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		name = strings.Trim(name, `"`)
		detail := fmt.Sprintf("The field %.100q is not known.", name)
		return &api.Problem{
			Status: http.StatusBadRequest, Code: api.CodeUnknownField, Detail: detail,
			Errors: []api.FieldError{{Pointer: pointerTo(r.body, name), Code: api.CodeUnknownField, Detail: detail}},
		}
	}
	detail := sentence(strings.TrimPrefix(err.Error(), "json: "))
	return &api.Problem{Status: http.StatusBadRequest, Code: api.CodeInvalidParameter, Detail: detail}
}

// typeName says in words of JSON what a Go type takes.
func typeName(kind, name string) string {
	switch {
	case name == "time.Time":
		return "a time such as 2026-11-20T09:00:00Z"
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		return "a whole number in range"
	case strings.HasPrefix(kind, "float"):
		return "a number"
	case kind == "bool":
		return "true or false"
	case kind == "slice", kind == "array":
		return "a list"
	case kind == "struct", kind == "map":
		return "an object"
	}
	return "a string"
}

// pointerOf makes a JSON Pointer (RFC 6901) of the path that encoding/json tells.
func pointerOf(field string) string {
	if field == "" {
		return ""
	}
	return "/" + strings.ReplaceAll(field, ".", "/")
}

// pointerTo finds the first object that has name, for encoding/json does not tell where an unknown field stands.
func pointerTo(b []byte, name string) string {
	var at []string // names and indexes that lead here
	var isArray []bool
	expectName := false
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{':
			at, isArray, expectName = append(at, ""), append(isArray, false), true
		case '[':
			at, isArray, expectName = append(at, "0"), append(isArray, true), false
		case '}', ']':
			at, isArray, expectName = at[:len(at)-1], isArray[:len(isArray)-1], false
		case ',':
			last := len(at) - 1
			if expectName = last >= 0 && !isArray[last]; last >= 0 && isArray[last] {
				var n int
				_, _ = fmt.Sscan(at[last], &n)
				at[last] = fmt.Sprint(n + 1)
			}
		case '"':
			end := stringEnd(b, i)
			if expectName {
				expectName = false
				at[len(at)-1] = string(nameOf(b[i : end+1]))
				if at[len(at)-1] == name {
					escape := strings.NewReplacer("~", "~0", "/", "~1")
					var p strings.Builder
					for _, step := range at {
						p.WriteString("/" + escape.Replace(step))
					}
					return p.String()
				}
			}
			i = end
		}
	}
	return ""
}
