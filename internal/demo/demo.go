package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"relayd/dkim"
	"relayd/internal/api"
	"relayd/internal/mail"
	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
)

// Limits of Options.
const (
	MaxRecipients = 100_000
	MaxSize       = 10 << 20
)

// ErrIncomplete tells that not every message arrived with both signatures verified; the summary was still printed.
var ErrIncomplete = errors.New("not everything was delivered and verified")

// Daemon is a running relayd as the demo sees it. internal/app satisfies it.
type Daemon interface {
	// SocketPath is the admin socket, with full rights.
	SocketPath() string
	// AdminURL is http://host:port of the HTTP API, without a final slash.
	AdminURL() string
	// Close stops the daemon gracefully and returns when it has stopped. It may be called twice.
	Close() error
}

// Start starts the daemon with a configuration in TOML and returns when its listeners are open. The daemon runs until
// Close; ctx bounds the start only.
type Start func(ctx context.Context, configTOML string) (Daemon, error)

// Options of a demo.
type Options struct {
	Recipients int   // subscribed customers, 1 to MaxRecipients; 0 means 200
	Size       int64 // octets of each message, at most MaxSize; 0 means 100,000
	Exit       bool  // end after the summary instead of staying up
	JSON       bool  // print one Summary object on Out and nothing else
	Out, Err   io.Writer
	Start      Start
}

func (o *Options) check() error {
	if o.Recipients == 0 {
		o.Recipients = 200
	}
	if o.Size == 0 {
		o.Size = 100_000
	}
	if o.Recipients < 1 || o.Recipients > MaxRecipients {
		return fmt.Errorf("recipients: want 1 to %d, got %d", MaxRecipients, o.Recipients)
	}
	if o.Size < 1 || o.Size > MaxSize {
		return fmt.Errorf("size: want 1 to %d octets, got %d", MaxSize, o.Size)
	}
	return nil
}

// world is everything that one demo runs.
type world struct {
	opts   Options
	screen *screen
	dir    string

	dns    *resolvertest.Server
	inbox  *Inbox
	web    *Web
	daemon Daemon
	client *api.Client

	customers []Customer
	campaign  string
	started   time.Time

	cleanup []func() // last first
}

// Run runs the demo. It returns ErrIncomplete when a message was not delivered or not verified, and other errors when
// the demo could not be set up. Without Options.Exit it stays up after the summary until ctx ends.
func Run(ctx context.Context, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	w := &world{opts: o, screen: newScreen(o)}
	defer w.close()
	for _, step := range []func(context.Context) error{w.build, w.addDomain, w.createCampaign, w.run} {
		if err := step(ctx); err != nil {
			w.screen.end()
			if ctx.Err() != nil {
				return fmt.Errorf("demo interrupted: %w", err)
			}
			return err
		}
	}
	sum := w.sum(ctx)
	if err := w.show(sum); err != nil {
		return err
	}
	if !o.Exit {
		<-ctx.Done()
	}
	if !sum.OK {
		return ErrIncomplete
	}
	return nil
}

func (w *world) close() {
	for _, undo := range slices.Backward(w.cleanup) {
		undo()
	}
}

// build starts name server, inbox and daemon.
func (w *world) build(ctx context.Context) (err error) {
	if w.dir, err = os.MkdirTemp("", "relayd-demo-"); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	w.cleanup = append(w.cleanup, func() { _ = os.RemoveAll(w.dir) })
	if w.dns, err = newZones(); err != nil {
		return err
	}
	w.cleanup = append(w.cleanup, func() { _ = w.dns.Close() })
	verify, err := newVerifier(w.dns.Addr)
	if err != nil {
		return err
	}
	letters := filepath.Join(w.dir, "inbox")
	if err := os.Mkdir(letters, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	w.inbox, err = NewInbox(InboxConfig{
		Dir: letters, Host: inboxHost, MaxMessage: 2*w.opts.Size + 1<<20, Verify: verify, Now: time.Now,
	})
	if err != nil {
		return fmt.Errorf("start inbox: %w", err)
	}
	w.cleanup = append(w.cleanup, func() { _ = w.inbox.Close() })
	if w.web, err = NewWeb(w.inbox); err != nil {
		return fmt.Errorf("start inbox page: %w", err)
	}
	w.cleanup = append(w.cleanup, func() { _ = w.web.Close() })
	return w.startDaemon(ctx)
}

// newVerifier verifies signatures with the keys that the demo's name server publishes.
func newVerifier(dns string) (Verifier, error) {
	r, err := resolver.New(resolver.Config{Servers: []string{dns}}, resolver.Deps{})
	if err != nil {
		return nil, fmt.Errorf("set up DNS: %w", err)
	}
	return func(ctx context.Context, message io.Reader) ([]Signature, error) {
		found, err := dkim.Verify(ctx, message, r)
		if err != nil {
			return nil, err
		}
		var out []Signature
		for _, v := range found {
			result := v.Result
			if v.Error != "" {
				result += ": " + mail.CleanText(v.Error, 200)
			}
			out = append(out, Signature{v.Domain, v.Selector, v.Algorithm, result})
		}
		return out, nil
	}, nil
}

// startTries is how often the daemon is started: its port is chosen before it is bound, another process may take it.
const startTries = 3

func (w *world) startDaemon(ctx context.Context) (err error) {
	for range startTries {
		var port int
		if port, err = freePort(); err != nil {
			return err
		}
		if w.daemon, err = w.opts.Start(ctx, w.config(port)); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("start relayd: %w", err)
	}
	w.client = api.NewUnixClient(w.daemon.SocketPath())
	w.cleanup = append(w.cleanup, func() {
		w.client.Close()
		_ = w.daemon.Close()
	})
	w.screen.line("relayd runs on loopback in %s", w.dir)
	return nil
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find port: %w", err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	return port, ln.Close()
}

// config is what an operator would write. The HTTP port is fixed because unsubscribe links hold it.
func (w *world) config(port int) string {
	return fmt.Sprintf(`hostname = %q
data_dir = %q

[log]
level = "warn"

[[smtp.listener]]
kind    = "submission"
address = "127.0.0.1:0"
tls     = "none"

[admin]
address    = "127.0.0.1:%d"
public_url = "http://127.0.0.1:%d"

[dns]
servers = [%q]

[delivery]
mx_port          = %d
allow_private_mx = true
`, relayHost, filepath.Join(w.dir, "data"), port, port, w.dns.Addr, w.inbox.Port())
}

// addDomain adds the sender domain and publishes what relayd asks for.
func (w *world) addDomain(ctx context.Context) error {
	d, err := w.client.CreateDomain(ctx, api.CreateDomain{Name: senderDomain})
	if err != nil {
		return fmt.Errorf("add domain: %w", err)
	}
	if err := publish(w.dns, d.DNSRecords); err != nil {
		return err
	}
	if d, err = w.client.VerifyDomain(ctx, senderDomain); err != nil {
		return fmt.Errorf("verify domain: %w", err)
	}
	ok := 0
	for _, r := range d.DNSRecords {
		if r.Status == api.RecordOK {
			ok++
		}
	}
	w.screen.line("%s signs with %d DKIM keys; %d of %d DNS records published and found", d.Name, len(d.Keys), ok, len(d.DNSRecords))
	return nil
}

// createCampaign makes the campaign and uploads the customers as the CSV file that a shop exports.
func (w *world) createCampaign(ctx context.Context) error {
	promotion, err := Promotion(w.opts.Size)
	if err != nil {
		return err
	}
	c, err := w.client.CreateCampaign(ctx, promotion, "")
	if err != nil {
		return fmt.Errorf("create campaign: %w", err)
	}
	w.campaign = c.ID
	w.customers = Customers(w.opts.Recipients)
	var file bytes.Buffer
	if err := WriteCSV(&file, w.customers); err != nil {
		return err
	}
	rep, err := w.client.AddRecipients(ctx, c.ID, "text/csv; charset=utf-8", &file, api.ImportOptions{})
	if err != nil {
		return fmt.Errorf("upload customers: %w", err)
	}
	if rep.Rejected > 0 {
		return fmt.Errorf("upload customers: %d rows were rejected, the first: %s %s", rep.Rejected, rep.Errors[0].Code, rep.Errors[0].Detail)
	}
	w.screen.line("campaign %s: %d customers in the file, %d of them unsubscribed", c.ID, rep.RowsRead, rep.SkippedUnsubscribed)
	return nil
}

const (
	pollEvery = 250 * time.Millisecond
	stallTime = time.Minute      // without any news the demo gives up
	bookTime  = 15 * time.Second // for the campaign to end after the last message has arrived
)

// run starts the campaign and follows it until everything is in the inbox and checked, or nothing moves any more.
func (w *world) run(ctx context.Context) error {
	w.started = time.Now()
	if _, err := w.client.CampaignAction(ctx, w.campaign, "start"); err != nil {
		return fmt.Errorf("start campaign: %w", err)
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	news, seen := time.Now(), Counts{}
	for {
		c, changed := w.inbox.Counts()
		if c != seen {
			news, seen = time.Now(), c
		}
		w.screen.bar(time.Now(), c, w.opts.Recipients, time.Since(w.started), false)
		if c.Pending == 0 && c.Verified >= w.opts.Recipients || time.Since(news) > stallTime {
			break
		}
		select {
		case <-changed:
		case <-tick.C:
			over, err := w.campaignOver(ctx)
			if err != nil {
				return err
			}
			if over && c.Pending == 0 {
				if now, _ := w.inbox.Counts(); now == c {
					w.screen.bar(time.Now(), c, w.opts.Recipients, time.Since(w.started), true)
					return nil
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c, _ := w.inbox.Counts()
	w.screen.bar(time.Now(), c, w.opts.Recipients, c.LastAt.Sub(w.started), true)
	return nil
}

func (w *world) campaignOver(ctx context.Context) (bool, error) {
	p, err := w.client.CampaignProgress(ctx, w.campaign)
	if err != nil {
		return false, fmt.Errorf("ask for progress: %w", err)
	}
	return strings.HasPrefix(p.State, "completed") || p.State == "failed" || p.State == "cancelled", nil
}

// sum counts, and lets the daemon finish its books.
func (w *world) sum(ctx context.Context) Summary {
	ctx, cancel := context.WithTimeout(ctx, bookTime)
	defer cancel()
	tick := time.NewTicker(pollEvery / 10)
	defer tick.Stop()
	var p api.Progress
	for {
		var err error
		if p, err = w.client.CampaignProgress(ctx, w.campaign); err != nil || p.Counts.Finished() >= p.Total && p.State != "running" {
			break
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	c, _ := w.inbox.Counts()
	s := Summary{
		Recipients: w.opts.Recipients, DKIMVerified: c.Verified, TLS: c.TLS, MessageBytes: c.Smallest,
		Duplicates: c.Messages - c.Recipients, Campaign: w.campaign, CampaignState: p.State, CampaignDelivered: p.Counts.Delivered,
		InboxURL: w.web.URL(), Socket: w.daemon.SocketPath(), AdminURL: w.daemon.AdminURL(),
	}
	strangers := c.Recipients
	for _, u := range w.customers {
		to, err := mail.ParsePath(u.Email)
		got := err == nil && w.inbox.Has(to.String())
		switch {
		case got && u.Subscribed:
			s.Delivered++
			strangers--
		case !u.Subscribed:
			s.Unsubscribed++
		}
	}
	if !c.LastAt.IsZero() {
		s.ElapsedSeconds = c.LastAt.Sub(w.started).Seconds()
		s.MessagesPerSecond = float64(c.Verified) / max(s.ElapsedSeconds, 0.001)
	}
	if letters, _ := w.inbox.Page(0, 1); len(letters) > 0 {
		s.UnsubscribeURL = letters[0].Unsubscribe
	}
	s.PeakRSSBytes = peakRSS()
	s.OK = s.Delivered == s.Recipients && s.DKIMVerified == s.Recipients && strangers == 0 &&
		p.State == "completed" && p.Counts.Delivered == int64(s.Recipients)
	return s
}

// show prints the summary.
func (w *world) show(s Summary) error {
	if w.opts.JSON {
		e := json.NewEncoder(w.opts.Out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(s)
	}
	w.screen.end()
	_, err := io.WriteString(w.opts.Out, s.text(w.opts.Exit))
	return err
}
