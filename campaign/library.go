package campaign

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// Tables of stored templates. Names hold no NUL, so that the parts of a key stay apart.
const (
	tableTemplate       kv.Table = "template"         // account, NUL, name → its versions in short
	tableEdition        kv.Table = "template_version" // account, NUL, name, NUL, version (4 bytes) → what is asked about a version
	tableEditionContent kv.Table = "template_content" // the same, piece (2 bytes) → its content as JSON, in pieces
)

// Kinds of templates.
const (
	kindBroadcast     = "broadcast"     // for campaigns
	kindTransactional = "transactional" // for single messages
	kindPartial       = "partial"       // for {{> name}} in others
)

// Limits of stored templates.
const (
	maxTemplates = 10_000 // of an account
	maxVersions  = 1000   // of a template
	maxTemplate  = 24 << 20
)

// Sentinel errors of stored templates.
var (
	ErrTemplateNotFound = errors.New("no such template")
	ErrTemplateExists   = errors.New("a template of this name exists: change it, or use another name")
	ErrTooMany          = errors.New("the account has as many templates, versions or assets as it may have")
	ErrChanged          = errors.New("it was changed meanwhile") // If-Match does not match: 412
)

// templateRecord is the row of a template.
type templateRecord struct {
	Kind      string    `json:"kind"`
	Latest    int       `json:"latest"`
	Published int       `json:"published,omitempty"` // 0: none
	Revision  int       `json:"revision"`            // grows with every change: the ETag
	Created   time.Time `json:"created"`
	Updated   time.Time `json:"updated"`
}

func (r *templateRecord) etag() string { return `"` + strconv.Itoa(r.Revision) + `"` }

// edition is the row of one version. Its content is in pieces beside it.
type edition struct {
	Version   int                   `json:"version"`
	Revision  int                   `json:"revision"` // of the template when the version was changed last
	Pieces    int                   `json:"pieces"`
	Variables []string              `json:"variables,omitempty"`
	Compiled  *api.TemplateCompiled `json:"compiled,omitempty"`
	Warnings  []api.Warning         `json:"warnings,omitempty"`
	Links     []string              `json:"links,omitempty"` // tokens of the assets that it links to
	Created   time.Time             `json:"created"`
	Updated   time.Time             `json:"updated"`
	Published time.Time             `json:"published,omitzero"` // zero: a draft
}

// editionContent is what a version holds: the source as its author wrote it, and what it took from elsewhere when it was
// saved, so that a published version never changes.
type editionContent struct {
	Source   api.TemplateSource     `json:"source"`
	Partials map[string]api.Partial `json:"partials,omitempty"`
	Images   []api.CampaignImage    `json:"images,omitempty"`
}

// template is the content as a campaign would carry it.
func (e *editionContent) template() *api.CampaignTemplate {
	s := &e.Source
	t := &api.CampaignTemplate{
		Subject: s.Subject, Preheader: s.Preheader, HTML: s.HTML, Text: s.Text, Options: s.Options, Variables: s.Variables,
	}
	taken := map[string]api.CampaignImage{}
	for _, img := range e.Images {
		taken[img.Name] = img
	}
	for _, img := range s.Images { // what the source carries itself goes before assets
		if full, ok := taken[img.Name]; ok && img.Content == "" && img.URL == "" {
			full.ContentID, full.Mode = img.ContentID, img.Mode
			img = full
		}
		delete(taken, img.Name)
		t.Images = append(t.Images, img)
	}
	for _, img := range e.Images {
		if _, left := taken[img.Name]; left {
			t.Images = append(t.Images, img)
		}
	}
	if len(s.Partials)+len(e.Partials) > 0 {
		t.Partials = map[string]api.Partial{}
		maps.Copy(t.Partials, e.Partials)
		maps.Copy(t.Partials, s.Partials)
	}
	return t
}

func templateKeyOf(account, name string) []byte {
	return append(append([]byte(account), 0), name...)
}

func editionKey(account, name string, version int) []byte {
	return binary.BigEndian.AppendUint32(append(templateKeyOf(account, name), 0), uint32(version)) //nolint:gosec // at most maxVersions
}

func pieceKey(account, name string, version, n int) []byte {
	return binary.BigEndian.AppendUint16(editionKey(account, name, version), uint16(n)) //nolint:gosec // at most maxTemplate in pieces
}

// encodeRow writes a version byte and JSON.
func encodeRow(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode template: %w", err)
	}
	return append([]byte{recordVersion}, b...), nil
}

func decodeRow(b []byte, v any) error {
	if len(b) == 0 || b[0] != recordVersion {
		return fmt.Errorf("%w: unknown version of template", errBadRecord)
	}
	d := json.NewDecoder(strings.NewReader(string(b[1:])))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: template: %w", errBadRecord, err)
	}
	return nil
}

func putRow(tx kv.Tx, t kv.Table, key []byte, v any) error {
	b, err := encodeRow(v)
	if err != nil {
		return err
	}
	if err := tx.Put(t, key, b); err != nil {
		return fmt.Errorf("write %s: %w", t, err)
	}
	return nil
}

// getRow tells whether there is such a row.
func getRow(tx kv.Tx, t kv.Table, key []byte, v any) (bool, error) {
	b, err := tx.Get(t, key)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", t, err)
	}
	if b == nil {
		return false, nil
	}
	return true, decodeRow(b, v)
}

func getTemplate(tx kv.Tx, account, name string) (*templateRecord, error) {
	r := new(templateRecord)
	ok, err := getRow(tx, tableTemplate, templateKeyOf(account, name), r)
	if err == nil && !ok {
		err = ErrTemplateNotFound
	}
	return r, err
}

func getEdition(tx kv.Tx, account, name string, version int) (*edition, error) {
	e := new(edition)
	if version < 1 || version > maxVersions {
		return nil, ErrTemplateNotFound
	}
	ok, err := getRow(tx, tableEdition, editionKey(account, name, version), e)
	if err == nil && !ok {
		err = ErrTemplateNotFound
	}
	return e, err
}

// putEdition writes a version with its content, over the one that is there.
func putEdition(tx kv.Tx, account, name string, e *edition, content []byte) error {
	pieces := (len(content) + chunkSize - 1) / chunkSize
	for n := pieces; n < e.Pieces; n++ {
		if err := tx.Delete(tableEditionContent, pieceKey(account, name, e.Version, n)); err != nil {
			return fmt.Errorf("write template: %w", err)
		}
	}
	e.Pieces = pieces
	for n := range pieces {
		piece := content[n*chunkSize : min(len(content), (n+1)*chunkSize)]
		if err := tx.Put(tableEditionContent, pieceKey(account, name, e.Version, n), piece); err != nil {
			return fmt.Errorf("write template: %w", err)
		}
	}
	return putRow(tx, tableEdition, editionKey(account, name, e.Version), e)
}

func getContentOf(tx kv.Tx, account, name string, e *edition) (*editionContent, error) {
	var all []byte
	for n := range e.Pieces {
		b, err := tx.Get(tableEditionContent, pieceKey(account, name, e.Version, n))
		if err != nil {
			return nil, fmt.Errorf("read template: %w", err)
		}
		if b == nil {
			return nil, fmt.Errorf("%w: template %s lacks piece %d of version %d", errBadRecord, name, n, e.Version)
		}
		all = append(all, b...)
	}
	c := new(editionContent)
	return c, decodeRow(all, c)
}

func deleteTemplate(tx kv.Tx, account, name string, r *templateRecord) error {
	for v := 1; v <= r.Latest; v++ {
		e, err := getEdition(tx, account, name, v)
		if errors.Is(err, ErrTemplateNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for n := range e.Pieces {
			if err := tx.Delete(tableEditionContent, pieceKey(account, name, v, n)); err != nil {
				return fmt.Errorf("delete template: %w", err)
			}
		}
		if err := tx.Delete(tableEdition, editionKey(account, name, v)); err != nil {
			return fmt.Errorf("delete template: %w", err)
		}
	}
	if err := tx.Delete(tableTemplate, templateKeyOf(account, name)); err != nil {
		return fmt.Errorf("delete template: %w", err)
	}
	return nil
}

// isTemplateName takes what can stand in a path of the API, in {{> name}} and in a header.
func isTemplateName(s string) bool {
	return isPartialName(s) && !strings.Contains(s, "/") && s != "." && s != ".." && len(s) <= 100
}

func (r *templateRecord) api(account, name string, e *edition) api.Template {
	t := api.Template{
		Name: name, Account: account, Kind: r.Kind, Version: e.Version, State: "draft", Published: r.Published, VariablesUsed: e.Variables,
		Compiled: e.Compiled, Warnings: e.Warnings, ETag: r.etag(), CreatedAt: e.Created, UpdatedAt: e.Updated, PublishedAt: e.Published,
	}
	if !e.Published.IsZero() {
		t.State = "published"
	}
	return t
}

// versioned names a version as people do: promo@7.
func versioned(name string, version int) string { return name + "@" + strconv.Itoa(version) }
