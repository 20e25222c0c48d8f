package campaign

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	_ "image/gif" // sizes of pictures are read from their headers
	_ "image/jpeg"
	_ "image/png"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Tables of assets.
const (
	tableAsset        kv.Table = "asset"         // account, NUL, id → what is known of it
	tableAssetName    kv.Table = "asset_name"    // account, NUL, name → id of the newest one of that name
	tableAssetToken   kv.Table = "asset_token"   // token of the URL → account, NUL, id
	tableAssetContent kv.Table = "asset_content" // account, NUL, id, piece (2 bytes) → its bytes
)

// Limits of assets.
const (
	maxAsset  = 5 << 20
	maxAssets = 2000 // of an account
)

// Sentinel errors of assets.
var (
	ErrAssetNotFound = errors.New("no such asset")
	ErrAssetUsed     = errors.New("a template links to this asset: mail that was sent would lose the picture")
)

const assetPrefix = "ast_"

// assetRecord is the row of an asset.
type assetRecord struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	ContentType string    `json:"content_type"`
	Bytes       int       `json:"bytes"`
	SHA256      string    `json:"sha256"`
	Width       int       `json:"width,omitempty"`
	Height      int       `json:"height,omitempty"`
	Token       string    `json:"token"` // of its URL: 128 random bits
	Pieces      int       `json:"pieces"`
	Created     time.Time `json:"created"`
}

// assetName takes what a file system, a header and a URL take as they are.
func assetName(name string) string {
	if i := strings.LastIndexAny(name, `/\`); i >= 0 {
		name = name[i+1:]
	}
	return name
}

// AddAsset stores a picture of an account. Its type is what its bytes say; only those that mail programs show are taken.
// The same bytes under the same name are stored once.
func (s *Service) AddAsset(ctx context.Context, account, name, contentType string, content []byte) (api.Asset, error) {
	name = assetName(name)
	bad := &Invalid{}
	img := &picture{name: name, contentType: contentType, content: content}
	switch {
	case name == "" || len(name) > 100 || !isImageName(name) || name[0] == '.':
		bad.add("/name", api.CodeInvalidParameter, "a name of 1 to 100 letters, digits, '.', '_', '-' and '@' is needed")
	case len(content) == 0:
		bad.add("/file", "required", "the file is empty")
	case len(content) > maxAsset:
		bad.add("/file", api.CodeMessageTooLarge, "more than %d bytes", maxAsset)
	}
	if err := bad.orNil(); err != nil {
		return api.Asset{}, err
	}
	img.contentType = "" // browsers guess by the name; the content is what counts
	is := checkImageType(img, "/file", bad)
	if err := bad.orNil(); err != nil {
		bad.Errors[0].Detail = "the file is no PNG, JPEG, GIF or WebP"
		bad.Detail, bad.Code, bad.Errors[0].Code = bad.Errors[0].Detail, api.CodeUnsupportedMediaType, api.CodeUnsupportedMediaType
		bad.Errors[0].Pointer = "/file"
		return api.Asset{}, err
	}
	now := s.now().UTC()
	sum := sha256.Sum256(content)
	token := make([]byte, 16)
	_, _ = rand.Read(token) // never fails since Go 1.24
	r := &assetRecord{
		ID: assetPrefix + mail.NewQueueID(now).String(), Name: name, ContentType: is, Bytes: len(content),
		SHA256: hex.EncodeToString(sum[:]), Token: hex.EncodeToString(token), Created: now,
	}
	if size, _, err := image.DecodeConfig(bytes.NewReader(content)); err == nil {
		r.Width, r.Height = size.Width, size.Height
	}
	stored := r
	err := s.db.Update(ctx, func(tx kv.Tx) error {
		stored = r
		old, err := assetNamed(tx, account, name)
		if err == nil && old.SHA256 == r.SHA256 {
			stored = old
			return nil
		}
		if err != nil && !errors.Is(err, ErrAssetNotFound) {
			return err
		}
		return putAsset(tx, account, r, content)
	})
	if err != nil {
		return api.Asset{}, wrapStore("store asset", err)
	}
	return s.assetOf(account, stored), nil
}

func putAsset(tx kv.Tx, account string, r *assetRecord, content []byte) error {
	n := 0
	prefix := templateKeyOf(account, "")
	err := tx.Scan(tableAsset, prefix, kv.PrefixEnd(prefix), func(_, _ []byte) (bool, error) {
		n++
		return n < maxAssets, nil
	})
	if err != nil {
		return fmt.Errorf("count assets: %w", err)
	}
	if n >= maxAssets {
		return ErrTooMany
	}
	r.Pieces = (len(content) + chunkSize - 1) / chunkSize
	for i := range r.Pieces {
		piece := content[i*chunkSize : min(len(content), (i+1)*chunkSize)]
		if err := tx.Put(tableAssetContent, assetPiece(account, r.ID, i), piece); err != nil {
			return fmt.Errorf("write asset: %w", err)
		}
	}
	if err := tx.Put(tableAssetName, templateKeyOf(account, r.Name), []byte(r.ID)); err != nil {
		return fmt.Errorf("write asset: %w", err)
	}
	if err := tx.Put(tableAssetToken, []byte(r.Token), templateKeyOf(account, r.ID)); err != nil {
		return fmt.Errorf("write asset: %w", err)
	}
	return putRow(tx, tableAsset, templateKeyOf(account, r.ID), r)
}

func assetPiece(account, id string, n int) []byte {
	return binary.BigEndian.AppendUint16(append(templateKeyOf(account, id), 0), uint16(n)) //nolint:gosec // at most maxAsset in pieces
}

func getAsset(tx kv.Tx, key []byte) (*assetRecord, error) {
	r := new(assetRecord)
	ok, err := getRow(tx, tableAsset, key, r)
	if err == nil && !ok {
		err = ErrAssetNotFound
	}
	return r, err
}

func assetNamed(tx kv.Tx, account, name string) (*assetRecord, error) {
	id, err := tx.Get(tableAssetName, templateKeyOf(account, name))
	if err != nil {
		return nil, fmt.Errorf("read asset: %w", err)
	}
	if id == nil {
		return nil, ErrAssetNotFound
	}
	return getAsset(tx, templateKeyOf(account, string(id)))
}

func assetContent(tx kv.Tx, account string, r *assetRecord) ([]byte, error) {
	content := make([]byte, 0, r.Bytes)
	for n := range r.Pieces {
		b, err := tx.Get(tableAssetContent, assetPiece(account, r.ID, n))
		if err != nil {
			return nil, fmt.Errorf("read asset: %w", err)
		}
		content = append(content, b...)
	}
	if len(content) != r.Bytes {
		return nil, fmt.Errorf("%w: asset %s has %d bytes, not %d", errBadRecord, r.ID, len(content), r.Bytes)
	}
	return content, nil
}

func (s *Service) assetOf(account string, r *assetRecord) api.Asset {
	return api.Asset{
		ID: r.ID, Account: account, Name: r.Name, ContentType: r.ContentType, Bytes: r.Bytes, SHA256: r.SHA256, Width: r.Width,
		Height: r.Height, URL: s.assetURL(r), CreatedAt: r.Created,
	}
}

func (s *Service) assetURL(r *assetRecord) string {
	if s.cfg.PublicURL == "" {
		return ""
	}
	return strings.TrimSuffix(s.cfg.PublicURL, "/") + "/a/" + r.Token + "/" + r.Name
}

// Asset shows one.
func (s *Service) Asset(ctx context.Context, account, id string) (api.Asset, error) {
	var r *assetRecord
	err := s.db.View(ctx, func(tx kv.Tx) (err error) {
		r, err = getAsset(tx, templateKeyOf(account, id))
		return err
	})
	if err != nil {
		return api.Asset{}, err
	}
	return s.assetOf(account, r), nil
}

// Assets lists the assets of an account in the order in which they came. cursor is the last id seen.
func (s *Service) Assets(ctx context.Context, account, cursor string, limit int) (list []api.Asset, next string, err error) {
	prefix := templateKeyOf(account, "")
	from := prefix
	if cursor != "" {
		from = append(templateKeyOf(account, cursor), 0)
	}
	err = s.db.View(ctx, func(tx kv.Tx) error {
		list, next = []api.Asset{}, ""
		return tx.Scan(tableAsset, from, kv.PrefixEnd(prefix), func(_, v []byte) (bool, error) {
			if len(list) == limit {
				next = list[limit-1].ID
				return false, nil
			}
			r := new(assetRecord)
			if err := decodeRow(v, r); err != nil {
				return false, err
			}
			list = append(list, s.assetOf(account, r))
			return true, nil
		})
	})
	return list, next, err
}

// DeleteAsset removes one. One that a template links to is removed with force only: ErrAssetUsed.
func (s *Service) DeleteAsset(ctx context.Context, account, id string, force bool) error {
	if !force {
		used, err := s.linksTo(ctx, account, id)
		if err != nil {
			return err
		}
		if used {
			return ErrAssetUsed
		}
	}
	err := s.db.Update(ctx, func(tx kv.Tx) error {
		r, err := getAsset(tx, templateKeyOf(account, id))
		if err != nil {
			return err
		}
		named, err := assetNamed(tx, account, r.Name)
		if err != nil && !errors.Is(err, ErrAssetNotFound) {
			return err
		}
		if err == nil && named.ID == id {
			if err := tx.Delete(tableAssetName, templateKeyOf(account, r.Name)); err != nil {
				return fmt.Errorf("delete asset: %w", err)
			}
		}
		for n := range r.Pieces {
			if err := tx.Delete(tableAssetContent, assetPiece(account, id, n)); err != nil {
				return fmt.Errorf("delete asset: %w", err)
			}
		}
		if err := tx.Delete(tableAssetToken, []byte(r.Token)); err != nil {
			return fmt.Errorf("delete asset: %w", err)
		}
		return tx.Delete(tableAsset, templateKeyOf(account, id))
	})
	if errors.Is(err, ErrAssetNotFound) {
		return err
	}
	if err != nil {
		return fmt.Errorf("delete asset: %w", err)
	}
	return nil
}

// linksTo tells whether a version of a template has the asset's URL.
func (s *Service) linksTo(ctx context.Context, account, id string) (used bool, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		r, err := getAsset(tx, templateKeyOf(account, id))
		if err != nil {
			return err
		}
		prefix := templateKeyOf(account, "")
		return tx.Scan(tableEdition, prefix, kv.PrefixEnd(prefix), func(_, v []byte) (bool, error) {
			e := new(edition)
			if err := decodeRow(v, e); err != nil {
				return false, err
			}
			for _, token := range e.Links {
				used = used || token == r.Token
			}
			return !used, nil
		})
	})
	return used, err
}

// PublicAsset is what the URL of an asset answers: anybody may ask who knows the token.
func (s *Service) PublicAsset(ctx context.Context, token, name string) (a api.Asset, content []byte, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		if len(token) != 32 {
			return ErrAssetNotFound
		}
		key, err := tx.Get(tableAssetToken, []byte(token))
		if err != nil {
			return fmt.Errorf("read asset: %w", err)
		}
		account, _, ok := strings.Cut(string(key), "\x00")
		if !ok {
			return ErrAssetNotFound
		}
		r, err := getAsset(tx, key)
		if err != nil {
			return err
		}
		if r.Name != name {
			return ErrAssetNotFound
		}
		a = s.assetOf(account, r)
		content, err = assetContent(tx, account, r)
		return err
	})
	return a, content, err
}

// takeAssets gives a version the pictures that its sources refer to and that it does not carry: their bytes where they
// become parts of the mail, their URL where they are linked to.
func (s *Service) takeAssets(tx kv.Tx, account string, c *editionContent, sources []string) error {
	have := map[string]bool{}
	take := func(name, mode string) error {
		if have[name] || len(c.Images) >= maxImages {
			return nil
		}
		r, err := assetNamed(tx, account, name)
		if errors.Is(err, ErrAssetNotFound) {
			return nil // the compiler says so
		}
		if err != nil {
			return err
		}
		have[name] = true
		img := api.CampaignImage{Name: name, ContentType: r.ContentType, URL: s.assetURL(r), Mode: mode}
		if mode == "" {
			mode = c.Source.Options.Images
		}
		if mode != "link" {
			content, err := assetContent(tx, account, r)
			if err != nil {
				return err
			}
			img.Content, img.URL = base64.StdEncoding.EncodeToString(content), ""
		}
		c.Images = append(c.Images, img)
		return nil
	}
	for _, img := range c.Source.Images {
		if img.Content == "" && img.URL == "" {
			if err := take(img.Name, img.Mode); err != nil {
				return err
			}
		}
		have[img.Name], have[img.ContentID] = true, true
	}
	for _, src := range sources {
		for _, m := range reference.FindAllStringSubmatch(src, -1) {
			if err := take(m[3], ""); err != nil {
				return err
			}
		}
	}
	return nil
}
