package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/spf13/cobra"

	"relayd/internal/mail"
)

// sendFlags are the flags of send.
type sendFlags struct {
	server, user, passwordFile, from string
	to                               []string
	size, subject, message           string
	tls, caFile, certFile, helo      string
	insecure                         bool
	timeout                          time.Duration
}

// sent is what send prints as JSON.
type sent struct {
	Server     string          `json:"server"`
	TLS        string          `json:"tls,omitempty"` // version, "" for none
	From       string          `json:"from"`
	Recipients []sentRecipient `json:"recipients"`
	Bytes      int             `json:"bytes"`
	Accepted   bool            `json:"accepted"`
	Reply      string          `json:"reply,omitempty"` // to the message, or the one that refused it
	QueueID    string          `json:"queue_id,omitempty"`
	Dialogue   []string        `json:"dialogue"`
}

type sentRecipient struct {
	Address  string `json:"address"`
	Accepted bool   `json:"accepted"`
	Reply    string `json:"reply,omitempty"` // where it was refused
}

func (a *app) sendCommand() *cobra.Command {
	f := sendFlags{}
	c := &cobra.Command{
		Use:   "send --server HOST:PORT --from A --to B[,C…]",
		Short: "Submit one test message over SMTP and print the dialogue",
		Long: `Submit one test message over SMTP and print the dialogue; passwords are shown as ***.

Without --tls it uses STARTTLS where the server offers it. A server that does not offer it gets a password only on a
loopback address. Certificates are checked, except on loopback addresses and with --insecure.
The exit code is 1 when the server refuses the message or one of the recipients.`,
		Example: `  relayctl send --server relay.example.com:587 --user shop --password-file pw --from a@example.com --to b@example.net
  relayctl send --server 127.0.0.1:2525 --tls none --from a@example.com --to b@example.net,c@example.net --size 4KB`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.send(cmd.Context(), f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.server, "server", "", "submission server, `HOST:PORT`")
	fl.StringVar(&f.user, "user", "", "user `name`")
	fl.StringVar(&f.passwordFile, "password-file", "", "`file` that holds the password")
	fl.StringVar(&f.from, "from", "", "sender `address`, \"<>\" for the null reverse-path")
	fl.StringSliceVar(&f.to, "to", nil, "recipient `address`, several with commas")
	fl.StringVar(&f.size, "size", "", "`size` of the message, such as 4KB")
	fl.StringVar(&f.subject, "subject", "relayctl test message", "`subject`")
	fl.StringVar(&f.message, "message", "", "send this `file` as it is, - for standard input")
	fl.StringVar(&f.tls, "tls", "", "starttls, implicit or none; default: starttls where it is offered")
	fl.StringVar(&f.caFile, "ca-file", "", "trust the certificates in this PEM `file`")
	fl.StringVar(&f.certFile, "cert-file", "", "show the certificate in this PEM `file`, which also holds its key, and authenticate with it (EXTERNAL)")
	fl.StringVar(&f.helo, "helo", "localhost", "`name` for EHLO")
	fl.BoolVar(&f.insecure, "insecure", false, "do not check the server's certificate")
	fl.DurationVar(&f.timeout, "timeout", time.Minute, "end after this `time`")
	for _, name := range []string{"server", "from", "to"} {
		_ = c.MarkFlagRequired(name)
	}
	_ = c.RegisterFlagCompletionFunc("tls", cobra.FixedCompletions([]string{"starttls", "implicit", "none"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) send(ctx context.Context, f sendFlags) error {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	password, body, err := a.prepareSend(&f)
	if err != nil {
		return err
	}
	out := sent{Server: f.server, From: f.from, Recipients: []sentRecipient{}, Bytes: len(body)}
	d := &dialogue{}
	if a.format == "table" {
		d.out = a.out
	}
	err = f.submit(ctx, d, password, body, &out)
	out.Dialogue = d.lines
	if a.format != "table" {
		t := &rows{header: []string{"recipient", "accepted", "reply"}}
		for _, r := range out.Recipients {
			t.add(r.Address, yesNo(r.Accepted), r.Reply)
		}
		if perr := a.print(out, t); perr != nil {
			return perr
		}
	}
	return err
}

// prepareSend checks the flags and reads the files that they name.
func (a *app) prepareSend(f *sendFlags) (password string, body []byte, err error) {
	if _, port, err := net.SplitHostPort(f.server); err != nil || port == "" {
		return "", nil, usage("--server %q is not like relay.example.com:587", f.server)
	}
	switch f.tls {
	case "", "starttls", "implicit", "none":
	default:
		return "", nil, usage("--tls %q: want starttls, implicit or none", f.tls)
	}
	if f.from == "<>" {
		f.from = ""
	}
	for _, addr := range append([]string{f.from}, f.to...) {
		if _, err := mail.ParsePath(addr); err != nil && addr != "" {
			return "", nil, usage("%q: %v", addr, err)
		}
	}
	switch {
	case f.certFile != "" && (f.tls == "none" || f.passwordFile != ""):
		return "", nil, usage("--cert-file needs TLS, and goes without --password-file")
	case f.certFile == "" && (f.user == "") != (f.passwordFile == ""):
		return "", nil, usage("--user and --password-file go together")
	}
	if f.passwordFile != "" {
		if password, err = readSecret(f.passwordFile); err != nil {
			return "", nil, err
		}
	}
	size := int64(0)
	if f.size != "" {
		if size, err = parseSize(f.size); err != nil || size > maxMessage {
			return "", nil, usage("--size %q: want a size such as 4KB, at most %d bytes", f.size, maxMessage)
		}
	}
	if f.message == "" {
		body, err = testMessage(*f, int(size), time.Now())
		return password, body, err
	}
	in := a.in
	if f.message != "-" {
		file, err := os.Open(f.message)
		if err != nil {
			return "", nil, err
		}
		defer file.Close()
		in = file
	}
	body, err = readMessage(in, maxMessage)
	return password, body, err
}

// readMessage reads a message of at most that many bytes, and ends its lines with CRLF.
func readMessage(in io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	if int64(len(b)) > most {
		return nil, usage("--message has more than %d bytes, the most that relayctl sends", most)
	}
	return crlf(b), nil
}

// parseSize reads "4096", "4KB" or "1MiB". KB and MB are powers of 1,000, as in the configuration.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRightFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	n, err := strconv.ParseInt(digits, 10, 32)
	unit, ok := map[string]int64{"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "kib": 1 << 10, "mib": 1 << 20}[strings.ToLower(strings.TrimSpace(s[len(digits):]))]
	if err != nil || !ok || n < 0 {
		return 0, fmt.Errorf("not a size: %q", s)
	}
	return n * unit, nil
}

// crlf ends every line with CRLF.
func crlf(b []byte) []byte {
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
}

// testMessage makes a message of at least size octets.
func testMessage(f sendFlags, size int, now time.Time) ([]byte, error) {
	from := f.from
	if from == "" {
		from = "postmaster@" + f.helo
	}
	var b []byte
	var err error
	for _, h := range [][2]string{
		{"From", "<" + from + ">"},
		{"To", strings.Join(f.to, ", ")},
		{"Subject", f.subject},
		{"Date", now.Format(time.RFC1123Z)},
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/plain; charset=utf-8"},
	} {
		if b, err = mail.AppendField(b, h[0], h[1]); err != nil {
			return nil, usage("%v", err)
		}
	}
	b = append(b, "\r\nThis is a test message of relayctl send.\r\n"...)
	for i := 1; len(b) < size; i++ {
		line := fmt.Sprintf("%06d %s\r\n", i, strings.Repeat("relayd ", 9))
		if left := size - len(b); left < len(line) {
			line = strings.Repeat(".", max(0, left-2)) + "\r\n"
		}
		b = append(b, line...)
	}
	return b, nil
}

// submit talks to the server. What it learns is in out even when it ends with an error.
func (f *sendFlags) submit(ctx context.Context, d *dialogue, password string, body []byte, out *sent) error {
	c, err := f.connect(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	state, encrypted := c.TLSConnectionState()
	if encrypted {
		out.TLS = strings.ReplaceAll(tls.VersionName(state.Version), " ", "")
	}
	if f.user != "" || f.certFile != "" {
		switch {
		case !encrypted && f.certFile != "":
			return errors.New("the server offers no TLS, which a certificate needs")
		case !encrypted && !f.loopback():
			return errors.New("the server offers no TLS: the password was not sent")
		}
		if err := f.auth(c, password); err != nil {
			return refused(out, "authentication", err)
		}
	}
	if err := c.Mail(f.from, &smtp.MailOptions{Size: int64(len(body))}); err != nil {
		return refused(out, "sender", err)
	}
	accepted := 0
	for _, to := range f.to {
		r := sentRecipient{Address: to, Accepted: true}
		if err := c.Rcpt(to, nil); err != nil {
			r.Accepted, r.Reply = false, replyText(err)
		} else {
			accepted++
		}
		out.Recipients = append(out.Recipients, r)
	}
	if accepted == 0 {
		_ = c.Quit()
		return fmt.Errorf("every recipient was refused: %s", out.Recipients[0].Reply)
	}
	if err := deliver(c, body, out); err != nil {
		return err
	}
	_ = c.Quit()
	if accepted < len(f.to) {
		for _, r := range out.Recipients {
			if !r.Accepted {
				return fmt.Errorf("%d of %d recipients were refused: %s: %s", len(f.to)-accepted, len(f.to), r.Address, r.Reply)
			}
		}
	}
	return nil
}

// deliver sends the message itself.
func deliver(c *smtp.Client, body []byte, out *sent) error {
	w, err := c.Data()
	if err != nil {
		return refused(out, "DATA", err)
	}
	if _, err := w.Write(body); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	res, err := w.CloseWithResponse()
	if err != nil {
		return refused(out, "message", err)
	}
	out.Accepted, out.Reply = true, "250 "+mail.ReplyText(res.StatusText)
	for word := range strings.FieldsFuncSeq(res.StatusText, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') }) {
		if id, err := mail.ParseQueueID(word); err == nil {
			out.QueueID = id.String()
		}
	}
	return nil
}

// refused notes the reply that ended the dialogue.
func refused(out *sent, what string, err error) error {
	if _, ok := errors.AsType[*smtp.SMTPError](err); !ok {
		return fmt.Errorf("%s: %w", what, err)
	}
	out.Reply = replyText(err)
	return fmt.Errorf("%s refused: %s", what, out.Reply)
}

func replyText(err error) string {
	e, ok := errors.AsType[*smtp.SMTPError](err)
	if !ok {
		return mail.ReplyText(err.Error())
	}
	r := mail.Reply{Code: e.Code, Text: mail.ReplyText(strings.ReplaceAll(e.Message, "\n", " "))}
	if c := e.EnhancedCode; c[0] > 0 {
		r.Status = mail.Status{Class: c[0], Subject: c[1], Detail: c[2]}
	}
	return r.String()
}

func (f *sendFlags) auth(c *smtp.Client, password string) error {
	if f.certFile != "" {
		return c.Auth(sasl.NewExternalClient(f.user))
	}
	if c.SupportsAuth(sasl.Plain) || !c.SupportsAuth(sasl.Login) {
		return c.Auth(sasl.NewPlainClient("", f.user, password))
	}
	return c.Auth(sasl.NewLoginClient(f.user, password))
}

// connect opens the session, with TLS as --tls says.
func (f *sendFlags) connect(ctx context.Context, d *dialogue) (*smtp.Client, error) {
	cfg, err := f.tlsConfig()
	if err != nil {
		return nil, err
	}
	if f.tls == "implicit" {
		conn, err := f.dial(ctx)
		if err != nil {
			return nil, err
		}
		secure := tls.Client(conn, cfg)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("TLS with %s: %w", f.server, err)
		}
		return f.hello(smtp.NewClient(secure), d)
	}
	conn, err := f.dial(ctx)
	if err != nil {
		return nil, err
	}
	if f.tls != "none" {
		heard := &heardConn{conn, d}
		c, err := smtp.NewClientStartTLS(heard, cfg)
		if err == nil {
			heard.d = nil // from here on the client itself tells what is said
			d.encrypted()
			return f.hello(c, d)
		}
		if f.tls == "starttls" || !d.noStartTLS() {
			return nil, fmt.Errorf("STARTTLS with %s: %w", f.server, err)
		}
		d.note("no STARTTLS, once more without")
		if conn, err = f.dial(ctx); err != nil {
			return nil, err
		}
	}
	return f.hello(smtp.NewClient(conn), d)
}

func (f *sendFlags) hello(c *smtp.Client, d *dialogue) (*smtp.Client, error) {
	c.DebugWriter = d
	c.CommandTimeout, c.SubmissionTimeout = f.timeout, f.timeout
	if err := c.Hello(f.helo); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("greet %s: %w", f.server, err)
	}
	return c, nil
}

// dial connects; the connection ends with ctx.
func (f *sendFlags) dial(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", f.server)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	return conn, nil
}

func (f *sendFlags) tlsConfig() (*tls.Config, error) {
	host, _, _ := net.SplitHostPort(f.server)
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if f.certFile != "" {
		pair, err := tls.LoadX509KeyPair(f.certFile, f.certFile)
		if err != nil {
			return nil, fmt.Errorf("load %s: %w", f.certFile, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	if f.caFile != "" {
		b, err := readFile(f.caFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%s holds no certificate", f.caFile)
		}
		return cfg, nil
	}
	cfg.InsecureSkipVerify = f.insecure || f.loopback()
	return cfg, nil
}

func (f *sendFlags) loopback() bool {
	host, _, _ := net.SplitHostPort(f.server)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
