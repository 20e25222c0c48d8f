package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	netmail "net/mail"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

// campaignFlags are the flags of campaign create that are not fields of the request as they stand.
type campaignFlags struct {
	template, text, from, recipients, kind string
	stored                                 string
	images, data                           []string
	key, segment                           string
	send                                   paceFlags
	guards                                 guardFlags
	audience                               api.Audience
}

// maxCampaignFile bounds a campaign as JSON and each file that it names.
const maxCampaignFile = 32 << 20

func (a *app) campaignCreate() *cobra.Command {
	in, f := api.CreateCampaign{}, campaignFlags{}
	c := &cobra.Command{
		Use:   "create [FILE.json]",
		Short: "Make a campaign from a JSON file (- for standard input), from flags, or from both",
		Long: `Make a campaign from a JSON file as POST /v1/campaigns takes it (- for standard input), from flags, or from both: flags
win. Recipients may stand in the JSON file or come from a CSV or JSON lines file. Without --start it stays a draft.`,
		Example: `  relayctl campaign create campaign.json --start
  relayctl campaign create --name 'Black Friday' --template promo.html --image sale.png --subject 'Black Friday, {{Name}}' \
    --from 'Shop <deals@example.com>' --data Body=@body.html --recipients customers.csv --start
  relayctl campaign create --stored-template promo@7 --from deals@example.com --data Subject=Hello --recipients customers.csv`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			flags := in // what flags have set
			in = api.CreateCampaign{}
			if len(args) == 1 {
				if err := a.readCampaign(args[0], &in); err != nil {
					return err
				}
			}
			if err := f.apply(cmd, flags, &in); err != nil {
				return err
			}
			return a.createCampaign(cmd.Context(), in, f)
		},
	}
	fl := c.Flags()
	fl.StringVar(&in.Name, "name", "", "`name` of the campaign; default: the subject")
	fl.StringVar(&in.Template.Subject, "subject", "", "`subject`, may hold {{variables}}")
	fl.StringVar(&in.Template.Preheader, "preheader", "", "`text` that mail programs show beside the subject")
	fl.StringVar(&f.template, "template", "", "HTML `file`")
	fl.StringVar(&f.stored, "stored-template", "", "`name` of a stored template, or NAME@VERSION; default: the version published at the start")
	fl.StringVar(&f.text, "text", "", "`file` of the text part; default: made from the HTML")
	fl.StringArrayVar(&f.images, "image", nil, "picture `file`, repeatable; the HTML shows it as src=\"cid:NAME\"")
	fl.StringVar(&f.from, "from", "", "sender, `'Name <address>'` or an address")
	fl.StringVar(&in.ReplyTo, "reply-to", "", "`address` for answers")
	fl.StringVar(&in.Stream, "stream", "", "`stream` for List-Id and listings")
	fl.StringArrayVar(&f.data, "data", nil, "campaign variable `KEY=VALUE`, or KEY=@FILE, repeatable")
	fl.StringVar(&in.OnMissing, "on-missing", "", "`what` becomes of recipients who lack a variable: error (default, the campaign is refused), default (nothing stands there) or skip (they get no message)")
	fl.StringVar(&f.recipients, "recipients", "", "CSV or JSON lines `file`, - for standard input")
	fl.StringVar(&f.kind, "recipients-type", "", "`type` of that file: csv or jsonl; default: by its name")
	fl.StringVar(&f.key, "idempotency-key", "", "`key` that makes the command safe to repeat")
	fl.BoolVar(&in.Start, "start", false, "start at once")
	f.send.flags(fl)
	f.guards.flags(fl)
	fl.StringVar(&f.audience.List, "list", "", "contact `list` that it goes to, beside or instead of --recipients")
	fl.StringVar(&f.audience.Topic, "topic", "", "only those of --list who want this `topic`")
	fl.StringVar(&f.segment, "segment", "", "only those of --list who meet this condition, as `JSON`")
	fl.StringArrayVar(&f.audience.ExcludeLists, "exclude-list", nil, "not to the members of this `list`, repeatable")
	return c
}

func (a *app) readCampaign(file string, in *api.CreateCampaign) error {
	r := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	d := json.NewDecoder(io.LimitReader(r, maxCampaignFile))
	d.DisallowUnknownFields()
	d.UseNumber()
	if err := d.Decode(in); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if d.More() {
		return fmt.Errorf("%s: more than one JSON value", file)
	}
	return nil
}

// apply puts what flags say over what the file says.
func (f *campaignFlags) apply(cmd *cobra.Command, flags api.CreateCampaign, in *api.CreateCampaign) error {
	for name, to := range map[string]struct{ dst, src *string }{
		"name": {&in.Name, &flags.Name}, "subject": {&in.Template.Subject, &flags.Template.Subject},
		"preheader": {&in.Template.Preheader, &flags.Template.Preheader}, "reply-to": {&in.ReplyTo, &flags.ReplyTo},
		"stream": {&in.Stream, &flags.Stream}, "on-missing": {&in.OnMissing, &flags.OnMissing},
	} {
		if cmd.Flags().Changed(name) {
			*to.dst = *to.src
		}
	}
	in.Start = in.Start || flags.Start
	if f.from != "" {
		m, err := netmail.ParseAddress(f.from)
		if err != nil {
			return usage("--from %q is not like 'Shop <deals@example.com>'", f.from)
		}
		in.From = api.Mailbox{Email: m.Address, Name: m.Name}
	}
	for file, dst := range map[string]*string{f.template: &in.Template.HTML, f.text: &in.Template.Text} {
		if file == "" {
			continue
		}
		b, err := readFile(file)
		if err != nil {
			return err
		}
		*dst = string(b)
	}
	for _, kv := range f.data {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return usage("--data %q is not like KEY=VALUE", kv)
		}
		if file, isFile := strings.CutPrefix(value, "@"); isFile {
			b, err := readFile(file)
			if err != nil {
				return err
			}
			value = string(b)
		}
		if in.Data == nil {
			in.Data = map[string]any{}
		}
		in.Data[key] = value
	}
	for _, file := range f.images {
		b, err := readFile(file)
		if err != nil {
			return err
		}
		in.Template.Images = append(in.Template.Images, api.CampaignImage{
			Name: filepath.Base(file), ContentType: http.DetectContentType(b), Content: base64.StdEncoding.EncodeToString(b),
		})
	}
	if f.stored != "" {
		name, version, found := strings.Cut(f.stored, "@")
		in.Template.Name, in.Template.Version = name, 0
		if n, err := strconv.Atoi(version); found && (err != nil || n < 1) {
			return usage("--stored-template %q is not like promo or promo@7", f.stored)
		} else if found {
			in.Template.Version = n
		}
	}
	if in.Name == "" {
		in.Name = cmp.Or(in.Template.Subject, in.Template.Name)
	}
	f.send.apply(cmd, &in.Send)
	f.guards.apply(cmd, &in.Guards)
	if f.audience.List != "" {
		in.Audience = &f.audience
		in.Audience.Segment = json.RawMessage(f.segment)
	}
	switch {
	case f.audience.List == "" && (f.audience.Topic != "" || f.segment != "" || len(f.audience.ExcludeLists) > 0):
		return usage("--topic, --segment and --exclude-list go with --list")
	case f.segment != "" && !json.Valid([]byte(f.segment)):
		return usage("--segment %q is not JSON such as '{\"attr\":\"Gender\",\"eq\":\"F\"}'", f.segment)
	case in.From.Email == "":
		return usage("campaign create wants --from")
	case in.Template.Name != "":
	case in.Template.Subject == "":
		return usage("campaign create wants --subject, or --stored-template")
	case in.Template.HTML == "" && in.Template.Text == "":
		return usage("campaign create wants --template, --text or --stored-template")
	}
	return nil
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	n, err := b.ReadFrom(io.LimitReader(f, maxCampaignFile+1))
	if err == nil && n > maxCampaignFile {
		err = fmt.Errorf("%s is larger than %d bytes", file, maxCampaignFile)
	}
	return b.Bytes(), err
}

// createdCampaign is the answer of campaign create.
type createdCampaign struct {
	api.Campaign
	Import *api.ImportReport `json:"import,omitempty"`
}

// createCampaign makes the campaign, uploads its recipients and starts it, as far as asked.
func (a *app) createCampaign(ctx context.Context, in api.CreateCampaign, f campaignFlags) error {
	var upload io.ReadCloser
	contentType := ""
	if f.recipients != "" {
		var err error
		if upload, contentType, err = a.openUpload(f.recipients, f.kind); err != nil {
			return err
		}
		defer upload.Close()
	}
	return a.call(func(c *api.Client) error {
		start := in.Start
		in.Start = start && upload == nil
		var out createdCampaign
		var err error
		if out.Campaign, err = c.CreateCampaign(ctx, in, f.key); err != nil {
			return err
		}
		if upload != nil {
			rep, err := c.AddRecipients(ctx, out.ID, contentType, upload, api.ImportOptions{})
			if err != nil {
				return fmt.Errorf("campaign %s stays a draft: %w", out.ID, err)
			}
			out.Import, out.Total = &rep, rep.Total
			if start {
				if out.Campaign, err = c.CampaignAction(ctx, out.ID, "start"); err != nil {
					return fmt.Errorf("campaign %s stays a draft: %w", out.ID, err)
				}
			}
		}
		if err := a.print(out, campaignPairs(out)); err != nil || a.format != "table" {
			return err
		}
		return a.printImportErrors(out.Import)
	})
}

func campaignPairs(c createdCampaign) pairs {
	p := pairs{
		{"campaign", c.ID},
		{"name", c.Name},
		{"state", c.State},
		{"reason", strings.TrimSpace(c.Reason + " " + c.Detail)},
		{"from", mailbox(c.From)},
		{"subject", c.Subject},
		{"recipients", number(c.Total)},
		{"send at", scheduleText(c.Schedule)},
		{"etag", c.ETag},
		{"created", moment(c.CreatedAt)},
		{"started", moment(c.StartedAt)},
		{"finished", moment(c.FinishedAt)},
	}
	if c.InFlight > 0 {
		p = append(p, [2]string{"in flight", number(c.InFlight)})
	}
	if i := c.Import; i != nil {
		p = append(p, [2]string{"import", fmt.Sprintf("%d rows, %d recipients, %d duplicates, %d unsubscribed, %d rejected",
			i.RowsRead, i.Created, i.Duplicates, i.SkippedUnsubscribed, i.Rejected)})
	}
	for _, w := range c.Warnings {
		p = append(p, [2]string{"warning", strings.TrimSpace(w.Code + " " + w.Part + " " + w.Detail)})
	}
	return p
}

func mailbox(m api.Mailbox) string {
	if m.Name == "" {
		return m.Email
	}
	return m.Name + " <" + m.Email + ">"
}

// maxShownErrors is how many rejected rows a table shows; JSON has them all.
const maxShownErrors = 20

func (a *app) printImportErrors(i *api.ImportReport) error {
	if i == nil || len(i.Errors) == 0 {
		return nil
	}
	t := &rows{header: []string{"line", "column", "value", "error"}}
	for n, e := range i.Errors {
		if n == maxShownErrors {
			t.note = "There are more: -o json shows them."
			break
		}
		t.add(number(e.Line), e.Column, e.Value, strings.TrimSpace(e.Code+" "+e.Detail))
	}
	return printTable(a.err, t)
}

func (a *app) campaignAddRecipients() *cobra.Command {
	kind, o := "", api.ImportOptions{}
	c := &cobra.Command{
		Use:   "add ID FILE",
		Short: "Add the recipients of a CSV or JSON lines file to a draft, - for standard input",
		Example: `  relayctl campaign recipients add cmp_0k2c9xw4 customers.csv
  relayctl campaign recipients add cmp_0k2c9xw4 export.csv --column 'E-Mail=email' --column 'Vorname=attributes.Name'`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, contentType, err := a.openUpload(args[1], kind)
			if err != nil {
				return err
			}
			defer r.Close()
			return a.call(func(c *api.Client) error {
				rep, err := c.AddRecipients(cmd.Context(), args[0], contentType, r, o)
				if err != nil {
					return err
				}
				err = a.print(rep, pairs{
					{"rows", number(rep.RowsRead)},
					{"created", number(rep.Created)},
					{"duplicates", number(rep.Duplicates)},
					{"unsubscribed", number(rep.SkippedUnsubscribed)},
					{"rejected", number(rep.Rejected)},
					{"recipients", number(rep.Total)},
				})
				if err != nil || a.format != "table" {
					return err
				}
				return a.printImportErrors(&rep)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&kind, "type", "", "`type` of the file: csv or jsonl; default: by its name")
	f.StringToStringVar(&o.ColumnMap, "column", nil, "what a column holds, `HEADER=email`, HEADER=status or HEADER=attributes.NAME, repeatable")
	f.StringVar(&o.DefaultStatus, "default-status", "", "of rows without a `status`: subscribed (default), unsubscribed or error")
	return c
}
