// Command kubecheck reads Kubernetes objects from stdin, as YAML, and says what an API server would refuse.
//
// Each object is decoded strictly into its type (an unknown, misspelt or doubled field is a fault), gets the defaults
// of the API server and passes the API server's own validation. Pods, also those of a template, are held to a level of
// the Pod Security Standards. One line for each fault, and exit code 1; exit code 2 if stdin cannot be read.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

func main() {
	level := flag.String("pod-security", string(api.LevelRestricted), "level of the Pod Security Standards: privileged, baseline or restricted")
	flag.Parse()
	faults, err := check(os.Stdin, api.Level(*level))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	for _, fault := range faults {
		fmt.Println(fault)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
}

// check returns the faults of all objects of a stream.
func check(stream io.Reader, level api.Level) ([]string, error) {
	if !level.Valid() {
		return nil, fmt.Errorf("%q is no level of the Pod Security Standards: privileged, baseline or restricted", level)
	}
	if err := monitoring.AddToScheme(legacyscheme.Scheme); err != nil {
		return nil, err
	}
	strict := serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	security, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, err
	}
	var faults []string
	objects := 0
	for documents, n := yaml.NewYAMLReader(bufio.NewReader(stream)), 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) && objects == 0 {
			return nil, errors.New("stdin has no object")
		}
		if errors.Is(err, io.EOF) {
			return faults, nil
		}
		if err != nil {
			return nil, err
		}
		var content any
		if yaml.Unmarshal(document, &content) == nil && content == nil {
			continue
		}
		objects++
		object, _, err := strict.Decode(document, nil, nil)
		if err != nil {
			faults = append(faults, fmt.Sprintf("document %d: %s", n, strings.Join(strings.Fields(err.Error()), " ")))
			continue
		}
		for _, fault := range append(validate(object), insecure(object, security, level)...) {
			faults = append(faults, name(object)+": "+fault)
		}
	}
}

// insecure returns what the level of the Pod Security Standards forbids in the object's pods.
func insecure(object runtime.Object, security policy.Evaluator, level api.Level) []string {
	var pod corev1.PodTemplateSpec
	switch object := object.(type) {
	case *appsv1.Deployment:
		pod = object.Spec.Template
	case *appsv1.StatefulSet:
		pod = object.Spec.Template
	case *corev1.Pod:
		pod = corev1.PodTemplateSpec{ObjectMeta: object.ObjectMeta, Spec: object.Spec}
	default:
		return nil
	}
	var faults []string
	for _, result := range security.EvaluatePod(api.LevelVersion{Level: level, Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec) {
		if !result.Allowed {
			faults = append(faults, fmt.Sprintf("violates PodSecurity %q: %s: %s", level, result.ForbiddenReason, result.ForbiddenDetail))
		}
	}
	return faults
}

// name returns an object as kind/name.
func name(object runtime.Object) string {
	named, err := meta.Accessor(object)
	if err != nil {
		return object.GetObjectKind().GroupVersionKind().Kind
	}
	return object.GetObjectKind().GroupVersionKind().Kind + "/" + named.GetName()
}
