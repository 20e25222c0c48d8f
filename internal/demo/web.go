package demo

import (
	"bytes"
	"context"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-message"
)

//go:embed web/*.html
var pages embed.FS

// Web shows an Inbox to a browser on the same machine: a list, and of each letter its HTML, text and source. A letter's
// HTML is foreign: it is served sandboxed, without scripts, and can load nothing.
type Web struct {
	box   *Inbox
	pages *template.Template
	ln    net.Listener
	srv   *http.Server
	busy  chan struct{} // bounds the letters that are parsed at once
	wg    sync.WaitGroup
}

// NewWeb listens on a free port of 127.0.0.1 and serves until Close.
func NewWeb(box *Inbox) (*Web, error) {
	t, err := template.ParseFS(pages, "web/*.html")
	if err != nil {
		return nil, fmt.Errorf("parse pages: %w", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	w := &Web{box: box, pages: t, ln: ln, busy: make(chan struct{}, 4)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", w.list)
	mux.HandleFunc("GET /letter/{id}", w.letter)
	mux.HandleFunc("GET /letter/{id}/html", w.html)
	mux.HandleFunc("GET /letter/{id}/source", w.source)
	w.srv = &http.Server{
		Handler: w.guard(mux), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	w.wg.Go(func() { _ = w.srv.Serve(ln) })
	return w, nil
}

// URL is the address of the list.
func (w *Web) URL() string { return "http://" + w.ln.Addr().String() + "/" }

// Close stops serving and returns when all requests have ended. It may be called twice.
func (w *Web) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := w.srv.Shutdown(ctx)
	if err != nil {
		err = w.srv.Close()
	}
	w.wg.Wait()
	return err
}

// guard answers only to the host it listens on, so that no foreign page reaches it through a name of its own (DNS
// rebinding), and sets the headers that hold for every page.
func (w *Web) guard(next http.Handler) http.Handler {
	_, port, _ := net.SplitHostPort(w.ln.Addr().String())
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Host != "127.0.0.1:"+port && r.Host != "localhost:"+port {
			http.Error(rw, "unknown host", http.StatusMisdirectedRequest)
			return
		}
		h := rw.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(rw, r)
	})
}

const perPage = 50

type listPage struct {
	Letters    []Letter
	Counts     Counts
	Page, Last int
}

func (p listPage) Prev() int { return p.Page - 1 }
func (p listPage) Next() int { return p.Page + 1 }

func (w *Web) list(rw http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.URL.Query().Get("page"))
	n = min(max(n, 1), 1_000_000)
	letters, all := w.box.Page((n-1)*perPage, perPage)
	counts, _ := w.box.Counts()
	w.show(rw, "list.html", listPage{letters, counts, n, max(1, (all+perPage-1)/perPage)})
}

type letterPage struct {
	Letter
	Text    string
	HasHTML bool
	Error   string
}

func (w *Web) letter(rw http.ResponseWriter, r *http.Request) {
	l, ok := w.find(rw, r)
	if !ok {
		return
	}
	page := letterPage{Letter: l}
	p, err := w.parse(r.Context(), l.ID)
	if err != nil {
		page.Error = err.Error()
	}
	page.Text, page.HasHTML = p.text, p.html != ""
	w.show(rw, "letter.html", page)
}

func (w *Web) html(rw http.ResponseWriter, r *http.Request) {
	l, ok := w.find(rw, r)
	if !ok {
		return
	}
	p, err := w.parse(r.Context(), l.ID)
	if err != nil {
		http.Error(rw, "the message cannot be read", http.StatusUnprocessableEntity)
		return
	}
	// No scripts, no origin, no network: pictures travel inside as data. A link opens in a new tab.
	rw.Header().Set("Content-Security-Policy",
		"default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; sandbox allow-popups allow-popups-to-escape-sandbox")
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(rw, p.withPictures())
}

func (w *Web) source(rw http.ResponseWriter, r *http.Request) {
	l, ok := w.find(rw, r)
	if !ok {
		return
	}
	f, err := os.Open(w.box.path(l.ID))
	if err != nil {
		http.Error(rw, "the message cannot be read", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.Copy(rw, f)
}

func (w *Web) find(rw http.ResponseWriter, r *http.Request) (Letter, bool) {
	id, err := strconv.Atoi(r.PathValue("id"))
	l, ok := w.box.Letter(id)
	if err != nil || !ok {
		http.Error(rw, "no such message", http.StatusNotFound)
		return Letter{}, false
	}
	return l, true
}

func (w *Web) show(rw http.ResponseWriter, name string, data any) {
	var b bytes.Buffer
	if err := w.pages.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(rw, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = b.WriteTo(rw)
}

// parts is what a browser can show of a message.
type parts struct {
	text, html string
	pictures   map[string]string // Content-ID: data URI
}

func (w *Web) parse(ctx context.Context, id int) (parts, error) {
	select {
	case w.busy <- struct{}{}:
		defer func() { <-w.busy }()
	case <-ctx.Done():
		return parts{}, ctx.Err()
	}
	f, err := os.Open(w.box.path(id))
	if err != nil {
		return parts{}, fmt.Errorf("open message: %w", err)
	}
	defer f.Close()
	return parseParts(f)
}

const (
	maxParts = 100
	maxPart  = 2 * MaxSize
)

// parseParts takes the first text part, the first HTML part and the pictures with a Content-ID.
func parseParts(r io.Reader) (parts, error) {
	p := parts{pictures: map[string]string{}}
	e, err := message.Read(r)
	if err != nil && !message.IsUnknownCharset(err) {
		return p, fmt.Errorf("parse message: %w", err)
	}
	n := 0
	err = e.Walk(func(_ []int, e *message.Entity, err error) error {
		if n++; n > maxParts {
			return errors.New("too many parts")
		}
		if err != nil && !message.IsUnknownCharset(err) {
			return err
		}
		return p.take(e)
	})
	if err != nil {
		return p, fmt.Errorf("parse message: %w", err)
	}
	return p, nil
}

func (p *parts) take(e *message.Entity) error {
	kind, _, err := e.Header.ContentType()
	if err != nil {
		kind = "application/octet-stream"
	}
	id := strings.Trim(e.Header.Get("Content-Id"), "<> ")
	isText := kind == "text/plain" && p.text == ""
	isHTML := kind == "text/html" && p.html == ""
	isPicture := id != "" && pictureType(kind)
	if !isText && !isHTML && !isPicture {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(e.Body, maxPart))
	if err != nil {
		return err
	}
	switch {
	case isText:
		p.text = string(b)
	case isHTML:
		p.html = string(b)
	default:
		p.pictures[id] = "data:" + kind + ";base64," + base64.StdEncoding.EncodeToString(b)
	}
	return nil
}

func pictureType(kind string) bool {
	kind, _, _ = mime.ParseMediaType(kind)
	return kind == "image/png" || kind == "image/jpeg" || kind == "image/gif" || kind == "image/webp"
}

// withPictures returns the HTML with its cid: pictures inside and links that open in a new tab.
func (p parts) withPictures() string {
	var pairs []string
	for id, data := range p.pictures {
		pairs = append(pairs, "cid:"+id, data)
	}
	const newTab = `<base target="_blank">`
	html := strings.NewReplacer(pairs...).Replace(p.html)
	if before, after, ok := strings.Cut(html, "<head>"); ok {
		return before + "<head>" + newTab + after // behind the doctype
	}
	return newTab + html
}
