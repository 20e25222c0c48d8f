package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

func ofAccount(account string) url.Values {
	v := url.Values{}
	setIf(v, "account", account)
	return v
}

func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, in any) (T, error) {
	var out T
	err := c.Do(ctx, method, path, query, in, &out)
	return out, err
}

func pathOf(kind, ref, rest string) string { return "/v1/" + kind + "/" + url.PathEscape(ref) + rest }

// CreateList makes a list of contacts.
func (c *Client) CreateList(ctx context.Context, in CreateList) (ContactList, error) {
	return post[ContactList](ctx, c, "/v1/lists", in)
}

// Lists lists the lists of an account by name. account is for callers with rights on all, "" for the caller's own.
func (c *Client) Lists(ctx context.Context, account string, l List) (Page[ContactList], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[ContactList]](ctx, c, "/v1/lists", v)
}

// ContactList shows a list, by ID or name.
func (c *Client) ContactList(ctx context.Context, account, ref string) (ContactList, error) {
	return get[ContactList](ctx, c, pathOf("lists", ref, ""), ofAccount(account))
}

// PatchList changes a list.
func (c *Client) PatchList(ctx context.Context, account, ref string, in PatchList) (ContactList, error) {
	return call[ContactList](ctx, c, http.MethodPatch, pathOf("lists", ref, ""), ofAccount(account), in)
}

// DeleteList removes a list; its contacts stay.
func (c *Client) DeleteList(ctx context.Context, account, ref string) error {
	return c.Do(ctx, http.MethodDelete, pathOf("lists", ref, ""), ofAccount(account), nil, nil)
}

// Contacts lists the contacts of a list, of one status or of all for "".
func (c *Client) Contacts(ctx context.Context, account, list, status string, l List) (Page[Contact], error) {
	v := l.values()
	setIf(v, "account", account)
	setIf(v, "status", status)
	return get[Page[Contact]](ctx, c, pathOf("lists", list, "/contacts"), v)
}

// Contact shows one, by ID or "email:" and its address.
func (c *Client) Contact(ctx context.Context, account, ref string) (Contact, error) {
	return get[Contact](ctx, c, pathOf("contacts", ref, ""), ofAccount(account))
}

// ContactActivity lists what was sent to a contact and what became of it, the last first.
func (c *Client) ContactActivity(ctx context.Context, account, ref string, l List) (Page[QueueItem], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[QueueItem]](ctx, c, pathOf("contacts", ref, "/activity"), v)
}

// PutContact makes a contact, or replaces its attributes.
func (c *Client) PutContact(ctx context.Context, account, ref string, in PutContact) (Contact, error) {
	return call[Contact](ctx, c, http.MethodPut, pathOf("contacts", ref, ""), ofAccount(account), in)
}

// PatchContact changes a contact.
func (c *Client) PatchContact(ctx context.Context, account, ref string, in PutContact) (Contact, error) {
	return call[Contact](ctx, c, http.MethodPatch, pathOf("contacts", ref, ""), ofAccount(account), in)
}

// DeleteContact removes a contact; with erase, no import brings it back.
func (c *Client) DeleteContact(ctx context.Context, account, ref string, erase bool) (ContactErased, error) {
	v := ofAccount(account)
	if erase {
		v.Set("erase", "true")
	}
	return call[ContactErased](ctx, c, http.MethodDelete, pathOf("contacts", ref, ""), v, nil)
}

// ContactBatch writes up to 1000 contacts to a list.
func (c *Client) ContactBatch(ctx context.Context, in ContactBatch) (ContactBatchResult, error) {
	return post[ContactBatchResult](ctx, c, "/v1/contacts/batch", in)
}

// CreateSegment stores a question about a list.
func (c *Client) CreateSegment(ctx context.Context, in CreateSegment) (Segment, error) {
	return post[Segment](ctx, c, "/v1/segments", in)
}

// Segments lists the segments of an account by name.
func (c *Client) Segments(ctx context.Context, account string, l List) (Page[Segment], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Segment]](ctx, c, "/v1/segments", v)
}

// Segment shows one, by ID or name.
func (c *Client) Segment(ctx context.Context, account, ref string) (Segment, error) {
	return get[Segment](ctx, c, pathOf("segments", ref, ""), ofAccount(account))
}

// CountSegment counts whom a segment means now.
func (c *Client) CountSegment(ctx context.Context, account, ref string) (SegmentCount, error) {
	return call[SegmentCount](ctx, c, http.MethodPost, pathOf("segments", ref, "/count"), ofAccount(account), nil)
}

// DeleteSegment removes one.
func (c *Client) DeleteSegment(ctx context.Context, account, ref string) error {
	return c.Do(ctx, http.MethodDelete, pathOf("segments", ref, ""), ofAccount(account), nil, nil)
}

// ImportContacts streams a CSV ("text/csv") or JSON lines ("application/x-ndjson") upload, plain or packed by gzip or
// zstd, into the list that in names; key, unless empty, makes the call safe to repeat.
func (c *Client) ImportContacts(ctx context.Context, in CreateImport, contentType string, body io.Reader, key string) (Import, error) {
	var out Import
	b, err := json.Marshal(in.Options)
	if err != nil {
		return out, fmt.Errorf("encode import options: %w", err)
	}
	v := ofAccount(in.Account)
	v.Set("list", in.List)
	setIf(v, "on_conflict", in.OnConflict)
	if in.MaxErrors > 0 {
		v.Set("max_errors", strconv.FormatInt(in.MaxErrors, 10))
	}
	if in.DryRun {
		v.Set("dry_run", "true")
	}
	opts := []Option{func(r *http.Request) { r.Header.Set(ImportOptionsHeader, string(b)) }}
	if key != "" {
		opts = append(opts, IdempotencyKey(key))
	}
	err = c.send(ctx, http.MethodPost, "/v1/imports", v, contentType, body, &out, opts)
	return out, err
}

// CreateImport begins an import in chunks.
func (c *Client) CreateImport(ctx context.Context, in CreateImport) (Import, error) {
	return post[Import](ctx, c, "/v1/imports", in)
}

// UploadChunk sends one chunk with its digest. It may be repeated.
func (c *Client) UploadChunk(ctx context.Context, id string, n int, contentType string, body []byte) (ImportChunk, error) {
	var out ImportChunk
	sum := sha256.Sum256(body)
	digest := func(r *http.Request) {
		r.Header.Set("Content-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
	}
	err := c.send(ctx, http.MethodPut, pathOf("imports", id, "/chunks/"+strconv.Itoa(n)), nil, contentType, bytes.NewReader(body), &out, []Option{digest})
	return out, err
}

// CommitImport ends an import in chunks.
func (c *Client) CommitImport(ctx context.Context, id string, chunks int) (Import, error) {
	return post[Import](ctx, c, pathOf("imports", id, "/commit"), CommitImport{chunks})
}

// Import shows how far one has come.
func (c *Client) Import(ctx context.Context, id string) (Import, error) {
	return get[Import](ctx, c, pathOf("imports", id, ""), nil)
}

// Imports lists the imports of an account, newest first.
func (c *Client) Imports(ctx context.Context, account string, l List) (Page[Import], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Import]](ctx, c, "/v1/imports", v)
}

// ImportErrors lists the rows that an import did not take.
func (c *Client) ImportErrors(ctx context.Context, id string, l List) (Page[ContactImportError], error) {
	return get[Page[ContactImportError]](ctx, c, pathOf("imports", id, "/errors"), l.values())
}

// DownloadImportErrors writes them to w as CSV, as they stood in the upload, with columns that say what is wrong.
func (c *Client) DownloadImportErrors(ctx context.Context, id string, w io.Writer) (int64, error) {
	res, err := c.roundTrip(ctx, http.MethodGet, pathOf("imports", id, "/errors"), nil, "", nil,
		[]Option{func(r *http.Request) { r.Header.Set("Accept", "text/csv") }})
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(w, res.Body)
	if err != nil {
		return n, fmt.Errorf("read answer: %w", err)
	}
	return n, nil
}

// DeleteImport cancels an import, or forgets one that has ended.
func (c *Client) DeleteImport(ctx context.Context, id string) (Import, error) {
	return call[Import](ctx, c, http.MethodDelete, pathOf("imports", id, ""), nil, nil)
}
