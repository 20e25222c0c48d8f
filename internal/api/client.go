package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client calls the API. It may be used by many goroutines.
type Client struct {
	base string // scheme and host, without a final slash
	key  string
	http *http.Client
}

const (
	dialTimeout   = 10 * time.Second
	answerTimeout = 2 * time.Minute // from the end of the request to the header of the answer
	maxAnswer     = 64 << 20        // bytes of a JSON answer
)

// NewUnixClient returns a client with full rights over the admin socket at path.
func NewUnixClient(path string) *Client {
	c := newClient("http://relayd", "")
	transport := c.http.Transport.(*http.Transport) //nolint:forcetypeassert // made by newClient
	transport.Proxy = nil
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
	}
	return c
}

// NewClient returns a client of the API at base, "https://relay.example.com:8080", with an API key.
func NewClient(base, key string) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("parse API address: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("API address is not like https://relay.example.com:8080")
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("API key holds a blank or a character that no key has")
	}
	return newClient(u.Scheme+"://"+u.Host+strings.TrimRight(u.Path, "/"), key), nil
}

func newClient(base, key string) *Client {
	return &Client{base: base, key: key, http: &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout:   dialTimeout,
			ResponseHeaderTimeout: answerTimeout,
			IdleConnTimeout:       time.Minute,
			MaxIdleConnsPerHost:   16,
		},
		// The API never redirects: following one could hand the key to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close gives idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Option changes one request.
type Option func(*http.Request)

// IdempotencyKey makes a POST safe to repeat: the server answers a repetition as it answered the first.
func IdempotencyKey(key string) Option {
	return func(r *http.Request) { r.Header.Set("Idempotency-Key", key) }
}

// Do sends in as JSON (nil for no body) and decodes the answer into out (nil to drop it). An error answer is returned as
// *Problem.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, in, out any, opts ...Option) error {
	var body io.Reader
	contentType := ""
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body, contentType = bytes.NewReader(b), "application/json"
	}
	return c.send(ctx, method, path, query, contentType, body, out, opts)
}

// Upload streams body and decodes the answer into out.
func (c *Client) Upload(ctx context.Context, path string, query url.Values, contentType string, body io.Reader, out any) error {
	return c.send(ctx, http.MethodPost, path, query, contentType, body, out, nil)
}

// Download streams the answer to w and returns the number of bytes.
func (c *Client) Download(ctx context.Context, path string, query url.Values, w io.Writer) (int64, error) {
	res, err := c.roundTrip(ctx, http.MethodGet, path, query, "", nil, nil)
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

func (c *Client) send(ctx context.Context, method, path string, query url.Values, contentType string, body io.Reader, out any, opts []Option) error {
	res, err := c.roundTrip(ctx, method, path, query, contentType, body, opts)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil || res.StatusCode == http.StatusNoContent {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// roundTrip returns the answer when it is a 2xx; the caller closes its body.
func (c *Client) roundTrip(ctx context.Context, method, path string, query url.Values, contentType string, body io.Reader, opts []Option) (*http.Response, error) {
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	for _, opt := range opts {
		opt(req)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("call relayd: %w", cause(err))
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, decodeProblem(res)
}

// cause drops method and URL from the error of net/http: the user knows whom he called.
func cause(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

func decodeProblem(res *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	p := &Problem{}
	if json.Unmarshal(b, p) != nil || p.Code == "" {
		return &Problem{Title: http.StatusText(res.StatusCode), Status: res.StatusCode, Code: fmt.Sprintf("http_%d", res.StatusCode)}
	}
	p.Status = res.StatusCode
	return p
}
