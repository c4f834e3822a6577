// derp-go drives a DERP server, or a fleet of them, with Tailscale's own client code and says, scenario by scenario,
// whether it behaves as a stock client expects. See README.md.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"tailscale.com/net/netns"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// mapSizeMax bounds a DERP map read from a URL or file.
const mapSizeMax = 4 << 20

// result is one line of the -json output.
type result struct {
	Name    string  `json:"name"`
	Outcome string  `json:"outcome"` // ok, fail or skip
	Why     string  `json:"why,omitempty"`
	Seconds float64 `json:"seconds"`
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("derp-go: ")
	mapSource := flag.String("map", "", "DERP map: an http(s) URL or a file (required)")
	caFile := flag.String("ca", "", "PEM file with the CA that signed the nodes' certificates")
	meshKeyFile := flag.String("mesh-key-file", "", "file with the DERP mesh key (64 hex digits); mesh scenarios need it")
	home := flag.Int("home", 0, "of `talk` and `stay`: the region that is this client's home")
	peerHome := flag.Int("peer-home", 0, "of `talk` and `stay`: the region that is its peer's home")
	settle := flag.Duration("settle", 100*time.Millisecond, "pause between the answer to a login and the first packet")
	timeout := flag.Duration("timeout", 15*time.Second, "limit for one scenario")
	long := flag.Bool("long", false, "`all` includes scenarios that take minutes by themselves")
	strict := flag.Bool("strict", false, "a scenario that the map or flags do not allow counts as failed, not as skipped")
	asJSON := flag.Bool("json", false, "print one JSON object per scenario")
	verbose := flag.Bool("v", false, "log what the stock client code logs")
	flag.Usage = usage
	flag.Parse()

	chosen, err := chooseScenarios(flag.Args(), *long)
	if err == nil && *mapSource == "" {
		err = errors.New("-map is missing: give the URL or file of a DERP map")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "derp-go: %v\n", err)
		usage()
		os.Exit(2)
	}
	// Everything here is on addresses the map names: no routing marks, no interface binding.
	netns.SetEnabled(false)
	e, err := newEnv(*mapSource, *caFile, *meshKeyFile)
	if err != nil {
		log.Fatal(err)
	}
	e.settle, e.home, e.peerHome = *settle, *home, *peerHome
	if *verbose {
		e.logf = log.Printf
	}

	explicit := len(flag.Args()) != 1 || flag.Arg(0) != "all"
	failed := false
	for _, s := range chosen {
		r := run(s, e, *timeout, *strict || explicit)
		failed = failed || r.Outcome == "fail"
		report(r, *asJSON)
	}
	if failed {
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintf(os.Stderr, "usage: derp-go -map URL-or-FILE [-ca FILE] [-mesh-key-file FILE] [flags] all | SCENARIO...\n\nscenarios:\n")
	for _, s := range scenarios {
		fmt.Fprintf(os.Stderr, "  %-28s %s\n", s.name, s.what)
	}
	fmt.Fprintf(os.Stderr, "\nflags:\n")
	flag.PrintDefaults()
}

func chooseScenarios(names []string, long bool) ([]scenario, error) {
	if len(names) == 0 {
		return nil, errors.New("name at least one scenario, or `all`")
	}
	if len(names) == 1 && names[0] == "all" {
		return slices.DeleteFunc(slices.Clone(scenarios), func(s scenario) bool { return s.apart || s.long && !long }), nil
	}
	var chosen []scenario
next:
	for _, name := range names {
		for _, s := range scenarios {
			if s.name == name {
				chosen = append(chosen, s)
				continue next
			}
		}
		return nil, fmt.Errorf("there is no scenario %q", name)
	}
	return chosen, nil
}

// run runs one scenario with a deadline and closes whatever it opened.
func run(s scenario, e *env, timeout time.Duration, mustRun bool) (r result) {
	r = result{Name: s.name, Outcome: "ok"}
	if unmet := s.needs.unmet(e); unmet != "" {
		r.Outcome, r.Why = "skip", unmet
		if mustRun {
			r.Outcome = "fail"
		}
		return r
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(timeout, s.limit))
	defer cancel()
	start := time.Now()
	t := &trial{env: e, ctx: ctx}
	defer t.closeAll()
	err := s.run(t)
	r.Seconds = time.Since(start).Seconds()
	if err != nil {
		r.Outcome, r.Why = "fail", err.Error()
	}
	return r
}

func report(r result, asJSON bool) {
	if asJSON {
		line, err := json.Marshal(r)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(line))
		return
	}
	switch r.Outcome {
	case "ok":
		fmt.Printf("ok %s\n", r.Name)
	case "skip":
		fmt.Printf("skip %s: %s\n", r.Name, r.Why)
	default:
		fmt.Printf("FAIL %s: %s\n", r.Name, r.Why)
	}
}

// env is what all scenarios share.
type env struct {
	regions  []*tailcfg.DERPRegion       // by region id, each with at least one relay node
	listed   map[int]*tailcfg.DERPRegion // the whole map, with nodes of other regions
	home     int                         // of `talk` and `stay`; 0: not given
	peerHome int
	roots    *x509.CertPool // nil: system roots
	meshKey  key.DERPMesh   // zero: none given
	settle   time.Duration
	logf     func(format string, args ...any)
}

func newEnv(mapSource, caFile, meshKeyFile string) (*env, error) {
	e := &env{logf: func(string, ...any) {}}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("-ca: %w", err)
		}
		e.roots = x509.NewCertPool()
		if !e.roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("-ca: %s holds no PEM certificate", caFile)
		}
	}
	if meshKeyFile != "" {
		text, err := os.ReadFile(meshKeyFile)
		if err != nil {
			return nil, fmt.Errorf("-mesh-key-file: %w", err)
		}
		if e.meshKey, err = key.ParseDERPMesh(strings.TrimSpace(string(text))); err != nil {
			return nil, fmt.Errorf("-mesh-key-file: %s does not hold 64 hex digits", meshKeyFile)
		}
	}
	raw, err := readMap(mapSource, e.roots)
	if err != nil {
		return nil, fmt.Errorf("-map: %w", err)
	}
	var m tailcfg.DERPMap
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("-map: %s is not a DERP map: %w", mapSource, err)
	}
	e.listed = m.Regions
	for _, id := range m.RegionIDs() {
		region := m.Regions[id].Clone()
		var relays []*tailcfg.DERPNode
		for _, n := range region.Nodes {
			// Cross-listed nodes belong to another region: take each node once, where it is at home.
			if !n.STUNOnly && n.RegionID == id {
				relays = append(relays, n)
			}
		}
		if region.Nodes = relays; len(relays) > 0 {
			e.regions = append(e.regions, region)
		}
	}
	if len(e.regions) == 0 {
		return nil, fmt.Errorf("-map: %s names no relay node", mapSource)
	}
	return e, nil
}

func readMap(source string, roots *x509.CertPool) ([]byte, error) {
	if !strings.HasPrefix(source, "http://") && !strings.HasPrefix(source, "https://") {
		return os.ReadFile(source)
	}
	c := &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}
	resp, err := c.Get(source)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", source, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, mapSizeMax))
}
